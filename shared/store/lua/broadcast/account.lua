-- Reads the totals of a bucket's permits (see permits.lua), and returns the unused ones on request. Repeating the call
-- changes nothing.
--
-- KEYS  1 permits of the bucket  2 flight
-- ARGV  1 total of granted permits, as far as the caller knows  2 '1' to return the unused permits
--       3 seconds the totals are kept
--       e.g. EVALSHA sha 2 formid:{wx1:7}:broadcast:<id>:permits formid:{wx1:7}:broadcast:<id>:flight 24 1 2592000
-- Reply  received, returned, ended, left: see permits_reply
--- @include head/permits
assert(#KEYS == 2 and #ARGV == 3, 'account: wrong number of arguments')

local received, returned, taken = read_permits(KEYS[1], tonumber(ARGV[1]))
if ARGV[2] == '1' and received > returned + taken then
  returned = received - taken
  redis.call('HSET', KEYS[1], 'received', received, 'returned', returned)
  -- A closed bucket has a shorter expiry already: see close.lua.
  if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
end
return permits_reply(received, returned, taken, KEYS[2])
