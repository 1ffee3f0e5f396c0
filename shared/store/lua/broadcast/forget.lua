-- Removes a user from a broadcast: from the audience, from the messages in flight, and from the undelivered users.
-- Repeating the call changes nothing.
--
-- KEYS  1 todo  2 flight  3 tally  4 data  5 undelivered  6 excluded
-- ARGV  1 openid  2 seconds the tally is kept if it had expired
-- Reply  number of entries removed from the undelivered users
assert(#KEYS == 6 and #ARGV == 2, 'forget: wrong number of arguments')

local openid = ARGV[1]
if redis.call('SREM', KEYS[1], openid) + redis.call('SREM', KEYS[2], openid) > 0 then
  redis.call('HINCRBY', KEYS[3], 'erased', 1)
  if redis.call('TTL', KEYS[3]) < 0 then redis.call('EXPIRE', KEYS[3], ARGV[2]) end
end
redis.call('HDEL', KEYS[4], openid)
redis.call('SREM', KEYS[6], openid)
-- "!" is the character after the space, and no openid contains a space.
return redis.call('ZREMRANGEBYLEX', KEYS[5], '[' .. openid .. ' ', '(' .. openid .. '!')
