-- Counts a delivered message of a broadcast as failed later, because WeChat reported so. Only a message whose msgid is kept
-- is of this broadcast, and it is counted once. One that is settled after the report is counted as failed by settle.lua.
--
-- KEYS  1 users  2 tally  3 undelivered  4 sent
-- ARGV  1 openid  2 msgid  3 why it failed, beginning with WeChat's errcode
--       e.g. EVALSHA sha 4 formid:{wx1:7}:users formid:{wx1:7}:broadcast:<id>:tally formid:{wx1:7}:broadcast:<id>:undelivered
--       formid:{wx1:7}:broadcast:<id>:sent oUser 1864574849230000000 '43101 user refuse'
-- Reply  1 if it was counted now
assert(#KEYS == 4 and #ARGV == 3, 'late: wrong number of arguments')

if redis.call('SREM', KEYS[4], ARGV[2]) == 0 or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local ending = failed_later(ARGV[3])
redis.call('HINCRBY', KEYS[2], 'delivered', -1)
redis.call('HINCRBY', KEYS[2], ending, 1)
-- Whoever was sent a message is touched, unless erased since: of an erased user nothing comes back.
if touched_at(redis.call('HGET', KEYS[1], ARGV[1]) or '') then
  redis.call('ZADD', KEYS[3], 0, ARGV[1] .. ' ' .. ending)
  -- The list may be new; it is kept as long as the tally.
  redis.call('PEXPIRE', KEYS[3], redis.call('PTTL', KEYS[2]))
end
return 1
