-- Counts a delivered message of a broadcast as failed, because WeChat reported a delivery failure. The message belongs
-- to this broadcast only if its msgid is stored there, and it is counted once. If the message is settled after the
-- report, settle.lua counts it as failed.
--
-- KEYS  1 users  2 tally  3 undelivered  4 sent
-- ARGV  1 openid  2 msgid  3 why it failed, beginning with WeChat's errcode
--       e.g. EVALSHA sha 4 formid:{wx1:7}:users formid:{wx1:7}:broadcast:<id>:tally
--       formid:{wx1:7}:broadcast:<id>:undelivered formid:{wx1:7}:broadcast:<id>:sent oUser 1864574849230000000 '43101
--       user refuse'
-- Reply  1 if it was counted now
--- @include head/touched head/broadcast
assert(#KEYS == 4 and #ARGV == 3, 'late: wrong number of arguments')

if redis.call('SREM', KEYS[4], ARGV[2]) == 0 or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local ending = failed_later(ARGV[3])
redis.call('HINCRBY', KEYS[2], 'delivered', -1)
redis.call('HINCRBY', KEYS[2], ending, 1)
-- A user with a delivered message has a last-messaged record, unless the user was erased since. No data of an erased
-- user is stored again.
if touched_at(redis.call('HGET', KEYS[1], ARGV[1]) or '') then
  redis.call('ZADD', KEYS[3], 0, ARGV[1] .. ' ' .. ending)
  -- The list may be new. It is kept as long as the tally.
  redis.call('PEXPIRE', KEYS[3], redis.call('PTTL', KEYS[2]))
end
return 1
