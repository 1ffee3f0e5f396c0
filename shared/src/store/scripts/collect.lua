-- Stores credentials of users of one bucket. Repeating it changes nothing: what is stored is found again.
--
-- KEYS  1 users  2 ledger
-- ARGV  1 the cap on records a user, then for each credential: openid, record (see records.lua)
--       e.g. EVALSHA sha 2 formid:{wx1:7}:users formid:{wx1:7}:ledger 120 oUser1 <record> oUser2 <record>
-- Reply  the places (from 0, in the order given) of those that were stored already
assert(#KEYS == 2 and #ARGV >= 3 and #ARGV % 2 == 1, 'collect: wrong number of arguments')

local cap, count = tonumber(ARGV[1]), (#ARGV - 1) / 2
local openids = {}
for i = 1, count do openids[i] = ARGV[2 * i] end
local fields = redis.call('HMGET', KEYS[1], unpack(openids))

local changed, duplicates = {}, {}
local collected, expired, dropped = 0, 0, 0
for i = 1, count do
  local openid, record = openids[i], ARGV[2 * i + 1]
  local field = changed[openid] or fields[i]
  if not field then
    changed[openid] = record
    collected = collected + byte(record, 5) % 32
  else
    local uses
    if field ~= '' and expiry_at(field, start_of(field, #field)) <= now then
      field, uses = drop_expired(field)
      expired = expired + uses
    end
    local tail = sub(record, 6)
    if locate(field, tail) then
      duplicates[#duplicates + 1] = i - 1
    else
      collected = collected + byte(record, 5) % 32
      field, uses = enforce_cap(insert(field, record), cap)
      dropped = dropped + uses
    end
    changed[openid] = field
  end
end

local pairs_of, n = {}, 0
for openid, field in pairs(changed) do
  pairs_of[n + 1], pairs_of[n + 2] = openid, field
  n = n + 2
end
redis.call('HSET', KEYS[1], unpack(pairs_of))
tally(KEYS[2], 'collected', collected)
tally(KEYS[2], 'expired', expired)
tally(KEYS[2], 'dropped', dropped)
return duplicates
