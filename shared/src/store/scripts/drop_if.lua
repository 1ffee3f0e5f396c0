-- Deletes a key if it still holds the given value: how an access token or a lock is let go without hitting a successor's.
--
-- KEYS  1 the key
-- ARGV  1 the value it must hold
-- Reply  1 if it was deleted
assert(#KEYS == 1 and #ARGV == 1, 'drop_if: wrong number of arguments')

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
