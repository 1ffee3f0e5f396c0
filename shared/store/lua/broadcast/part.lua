-- Records that a bucket holds a part of a broadcast's recipient list, unless the broadcast was started. A bucket's task
-- is created at the start, so a bucket that comes later would never get one.
--
-- KEYS  1 record  2 its open buckets  3 the buckets of its recipient list
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
