-- Deletes a key if it still holds the given value. Used to delete an access token or release a lock without affecting a
-- newer one.
--
-- KEYS  1 the key
-- ARGV  1 the expected value
-- Reply  1 if the key was deleted
assert(#KEYS == 1 and #ARGV == 1, 'drop_if: wrong number of arguments')

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
