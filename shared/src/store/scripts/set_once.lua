-- Sets a key that must not be there: how a turn or a lock is taken. Repeating it with the same value, which is chosen at
-- random, finds it taken by oneself.
--
-- KEYS  1 the key
-- ARGV  1 the value  2 ms to keep it
-- Reply  1 if it holds the value, 0 if it holds another
assert(#KEYS == 1 and #ARGV == 2, 'set_once: wrong number of arguments')

if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0
