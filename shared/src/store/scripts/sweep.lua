-- Drops what has expired for a few users of a bucket, and counts what the rest have.
--
-- KEYS  1 users  2 ledger
-- ARGV  1 cursor ('0' to begin)  2 about how many users to look at  3 length of a day in s  4 offset of the day in s
-- Reply  the next cursor ('0' at the end), users that can be reached,
--        then for each kind and day of expiry: kind, day (days since 1970 in the offset's time zone), credentials, messages
assert(#KEYS == 2 and #ARGV == 4, 'sweep: wrong number of arguments')

local day_length, offset = tonumber(ARGV[3]), tonumber(ARGV[4])
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local entries = page[2]
local reachable, expired, days = 0, 0, {}
for i = 1, #entries, 2 do
  local openid, before = entries[i], entries[i + 1]
  local field, gone = drop_expired(before)
  if #field ~= #before then
    save(KEYS[1], openid, field)
    expired = expired + gone
  end
  local stop, any = #field, false
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    local uses = flags % 32
    if uses > 0 then
      any = true
      local day = math.floor((expiry_at(field, start) + offset) / day_length) * 4 + math.floor(flags / 64)
      local count = days[day]
      if count then
        count[1], count[2] = count[1] + 1, count[2] + uses
      else
        days[day] = { 1, uses }
      end
    end
    stop = start - 1
  end
  if any then reachable = reachable + 1 end
end
tally(KEYS[2], 'expired', expired)
local reply = { page[1], reachable }
for day, count in pairs(days) do
  local n = #reply
  reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = day % 4, math.floor(day / 4), count[1], count[2]
end
return reply
