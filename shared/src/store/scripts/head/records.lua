-- The format of a user's field, and what can be done to it. Put before every script that touches one; its twin in Rust
-- is record.rs, and a property test holds the two against each other.
--
-- A field is the user's records end to end, the latest to expire first, so that the newest is found at the front and
-- the one to spend next at the back, both without a walk. A record is read backward from its last byte:
--
--   expiry  4 bytes  seconds since 1970, big-endian
--   flags   1 byte   kind * 64 + suspect * 32 + uses left (0 to 31; 0 while the last use is leased)
--   id      1 to 128 bytes
--   length  1 byte   bytes of the id - 1, plus 128 where the id is lowercase hex stored as bytes
--
-- "Tail" is what names a record: its id and length bytes.

local byte, char, find, sub = string.byte, string.char, string.find, string.sub

local clock = redis.call('TIME')
local now = tonumber(clock[1])

-- The first byte of the record whose last byte is at `stop`.
local function start_of(field, stop)
  return stop - byte(field, stop) % 128 - 6
end

local function expiry_at(field, start)
  local a, b, c, d = byte(field, start, start + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

-- The field without what has expired, and how many uses went with it.
local function drop_expired(field)
  local stop, uses = #field, 0
  while stop > 0 do
    local start = start_of(field, stop)
    if expiry_at(field, start) > now then break end
    uses = uses + byte(field, start + 4) % 32
    stop = start - 1
  end
  if stop == #field then return field, 0 end
  return sub(field, 1, stop), uses
end

-- Where the record named by `tail` starts and stops; nothing if there is none.
local function locate(field, tail)
  if not find(field, tail, 1, true) then return nil end
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    if sub(field, start + 5, stop) == tail then return start, stop end
    stop = start - 1
  end
  return nil
end

-- The field with the record in its place by expiry; among equals it goes behind those that came earlier.
local function insert(field, record)
  local expiry = expiry_at(record, 1)
  if field == '' or expiry_at(field, 1) <= expiry then return record .. field end
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    if expiry_at(field, start) > expiry then break end
    stop = start - 1
  end
  return sub(field, 1, stop) .. record .. sub(field, stop + 1)
end

-- How many uses are left in the whole field.
local function uses_left(field)
  local stop, uses = #field, 0
  while stop > 0 do
    local start = start_of(field, stop)
    uses = uses + byte(field, start + 4) % 32
    stop = start - 1
  end
  return uses
end

-- The field brought back to at most `cap` records, and how many uses that cost. The soonest to expire goes first; one
-- whose last use is leased stays, so that a message in doubt keeps its credential.
local function enforce_cap(field, cap)
  if #field <= cap * 7 then return field, 0 end
  local count, stop = 0, #field
  while stop > 0 do
    count = count + 1
    stop = start_of(field, stop) - 1
  end
  local dropped = 0
  stop = #field
  while count > cap and stop > 0 do
    local start = start_of(field, stop)
    local uses = byte(field, start + 4) % 32
    if uses > 0 then
      field = sub(field, 1, start - 1) .. sub(field, stop + 1)
      dropped = dropped + uses
      count = count - 1
    end
    stop = start - 1
  end
  return field, dropped
end

local function save(users, openid, field)
  if field == '' then redis.call('HDEL', users, openid) else redis.call('HSET', users, openid, field) end
end

local function tally(key, name, uses)
  if uses > 0 then redis.call('HINCRBY', key, name, uses) end
end
