-- Goes on with users of a bucket whose messages are in flight or in doubt: takes over each lease whose deadline has
-- passed. What is taken over may have been delivered before, and only the same credential can tell. A lease that has this
-- very owner already was made by a page whose reply was lost, and nothing was sent with it, unless it is held since.
--
-- KEYS  1 leases  2 flight  3 tally  4 data  5 undelivered
-- ARGV  1 broadcast  2 owner from now on  3 lease in ms  4 seconds the broadcast's keys are kept  then openids
-- Reply  ms until the next deadline of those that are not taken over yet (0: there are none),
--        then for each that was taken over: openid, lease (see lease_reply), data of its own or ''
assert(#KEYS == 5 and #ARGV >= 5, 'takeover: wrong number of arguments')

local leases, flight = KEYS[1], KEYS[2]
local id, owner, deadline = ARGV[1], ARGV[2], now_ms + tonumber(ARGV[3])
local openids, names = {}, {}
for i = 5, #ARGV do
  openids[i - 4], names[i - 4] = ARGV[i], message_name(id, ARGV[i])
end
local all_held = redis.call('HMGET', leases, unpack(names))
local flying = redis.call('SMISMEMBER', flight, unpack(openids))

local wait, reply, endings = 0, { 0 }, {}
for n, openid in ipairs(openids) do
  local held = all_held[n]
  if flying[n] == 1 and not held then
    -- The reaper let the lease go after all the time that a message is kept in doubt.
    if redis.call('SREM', flight, openid) == 1 then
      endings[#endings + 1] = openid
      endings[#endings + 1] = 'UNKNOWN'
    end
  elseif flying[n] == 1 then
    local left = struct.unpack('>d', held) - now_ms
    local fresh = sub(held, 23, 38) == owner and byte(held, 17) % 2 == 0
    if left > 0 and not fresh then
      if wait == 0 or left < wait then wait = left end
    else
      local state, flags, expiry = fresh and byte(held, 17) or 2, byte(held, 18), sub(held, 19, 22)
      redis.call('HSET', leases, names[n],
        lease_head(deadline, deadline, state, flags, expiry) .. message_who(owner, id, openid) .. tail_of(held))
      local own = redis.call('HGET', KEYS[4], openid)
      reply[#reply + 1] = openid
      reply[#reply + 1] = lease_packed(state, flags, expiry, tail_of(held), 0)
      reply[#reply + 1] = own or ''
    end
  end
end
count_endings(KEYS[3], KEYS[5], ARGV[4], endings)
reply[1] = math.ceil(wait)
return reply
