-- Sets a key that does not exist. Used to take a turn or a lock. The value is chosen at random: repeating the call with
-- the same value finds the key taken by the caller itself, and succeeds. From Redis 7 on, SET with NX and GET does this
-- without a script; Redis 6.2 refuses the two together.
--
-- KEYS  1 the key
-- ARGV  1 the value  2 ms to keep it
-- Reply  1 if the key holds the value, 0 if it holds another
assert(#KEYS == 1 and #ARGV == 2, 'set_once: wrong number of arguments')

if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0
