-- Closes a bucket of a broadcast if everyone was dealt with: drops what only the sending needed, and keeps the rest. The
-- msgids of what was delivered lately go by themselves: failures are reported after the end too.
--
-- KEYS  1 todo  2 flight  3 tally  4 data  5 undelivered  6 excluded  7 permits
-- ARGV  1 seconds to keep the rest; the permits are kept for a day, until they are accounted for
--       2 '1' if those whose turn has not come shall stay out (it was cancelled)
-- Reply  1 if it is closed, 0 if somebody is left
assert(#KEYS == 7 and #ARGV == 2, 'close: wrong number of arguments')

if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if ARGV[2] ~= '1' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[4], KEYS[6])
redis.call('EXPIRE', KEYS[3], ARGV[1])
redis.call('EXPIRE', KEYS[5], ARGV[1])
redis.call('EXPIRE', KEYS[7], 24 * 3600)
return 1
