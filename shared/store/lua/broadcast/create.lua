-- Stores a broadcast in state PENDING. Repeating the call with the same request finds the same broadcast.
--
-- KEYS  1 record  2 index of the app's broadcasts  3 the request's broadcast (only with a request id)
-- ARGV  1 broadcast  2 fingerprint of the call  3 seconds to keep the request, and the broadcast while it has not ended
--       4 and following: names and values of the record's fields
-- Reply  created | exists BROADCAST | reused
assert((#KEYS == 2 or #KEYS == 3) and #ARGV >= 5 and #ARGV % 2 == 1, 'create: wrong number of arguments')

local id, fingerprint, keep = ARGV[1], ARGV[2], ARGV[3]
if KEYS[3] then
  local known = redis.call('GET', KEYS[3])
  if known then
    if string.sub(known, 1, #fingerprint) ~= fingerprint then return { 'reused' } end
    return { 'exists', string.sub(known, #fingerprint + 1) }
  end
  redis.call('SET', KEYS[3], fingerprint .. id, 'EX', keep)
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'PENDING', 'created_ms', string.format('%d', now_ms), unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], keep)
-- Ids begin with the time, so they sort by creation.
redis.call('ZADD', KEYS[2], 0, id)
redis.call('EXPIRE', KEYS[2], keep)
return { 'created' }
