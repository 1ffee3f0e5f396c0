-- Advances the time by moving every stored time into the past, because the clock of Redis cannot be set.
--
-- ARGV  1 seconds
local seconds = tonumber(ARGV[1])

local function earlier(bytes)
  -- The value for no expiry.
  if bytes == '\255\255\255\255' then return bytes end
  return struct.pack('>I4', struct.unpack('>I4', bytes) - seconds)
end

local function aged_field(field)
  local stop, parts = #field, {}
  while stop > 0 do
    local start = stop - string.byte(field, stop) % 128 - 6
    table.insert(parts, 1, earlier(field:sub(start, start + 3)) .. field:sub(start + 4, stop))
    stop = start - 1
  end
  return table.concat(parts)
end

local function aged_lease(lease)
  local deadline, turn = struct.unpack('>dd', lease)
  local times = struct.pack('>dd', deadline - seconds * 1000, turn - seconds * 1000)
  return times .. lease:sub(17, 18) .. earlier(lease:sub(19, 22)) .. lease:sub(23)
end

local function change(key, aged)
  local entries = redis.call('HGETALL', key)
  for i = 1, #entries, 2 do redis.call('HSET', key, entries[i], aged(entries[i + 1])) end
end

for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then
    -- A time to live that is not positive deletes the key.
    redis.call('PEXPIRE', key, left - seconds * 1000)
  elseif key:match(':users$') then
    change(key, aged_field)
  elseif key:match(':leases$') then
    change(key, aged_lease)
  end
end
