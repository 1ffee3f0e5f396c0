-- Counts one more consecutive message that was refused for its content. Does not create the record of a broadcast that
-- no longer exists. Resending the call after a lost reply counts the message again.
--
-- KEYS  1 record
-- Reply  number of consecutive refusals
assert(#KEYS == 1 and #ARGV == 0, 'streak: wrong number of arguments')

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'streak', 1)
