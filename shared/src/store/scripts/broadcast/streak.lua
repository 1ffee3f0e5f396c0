-- Counts one more message in a row that was refused for what is in it. A broadcast that is gone does not come back by it.
-- Sent again after a lost reply it counts again.
--
-- KEYS  1 record
-- Reply  how many in a row
assert(#KEYS == 1 and #ARGV == 0, 'streak: wrong number of arguments')

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'streak', 1)
