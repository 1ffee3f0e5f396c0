-- Notes that a bucket holds a part of the list of a broadcast, as long as the broadcast was not started: the bucket has its
-- task from the start or never.
--
-- KEYS  1 record  2 its open buckets  3 the buckets of its list
-- ARGV  1 bucket  2 seconds the keys are kept
-- Reply  1, or 0 if the broadcast was started
assert(#KEYS == 3 and #ARGV == 2, 'part: wrong number of arguments')

local state, scheduled = unpack(redis.call('HMGET', KEYS[1], 'state', 'scheduled'))
if state and (state ~= 'PENDING' or scheduled) then return 0 end
for i = 2, 3 do
  redis.call('SADD', KEYS[i], ARGV[1])
  redis.call('EXPIRE', KEYS[i], ARGV[2])
end
return 1
