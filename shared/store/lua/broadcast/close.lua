-- Closes a bucket of a broadcast if no user is left: deletes the keys that only sending needs, and sets the expiry of
-- the others. The msgids of recently delivered messages expire by themselves, because delivery failures are also
-- reported after the end. Repeating the call only renews the expiry.
--
-- KEYS  1 todo  2 flight  3 tally  4 data  5 undelivered  6 excluded  7 permits
-- ARGV  1 seconds to keep the tally and the undelivered users; the permits are kept for a day, until they are accounted
--       for
--       2 '1' if users in todo do not count as left (the broadcast was cancelled)
-- Reply  1 if the bucket is closed, 0 if users are left
assert(#KEYS == 7 and #ARGV == 2, 'close: wrong number of arguments')

if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if ARGV[2] ~= '1' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[4], KEYS[6])
redis.call('EXPIRE', KEYS[3], ARGV[1])
redis.call('EXPIRE', KEYS[5], ARGV[1])
redis.call('EXPIRE', KEYS[7], 24 * 3600)
return 1
