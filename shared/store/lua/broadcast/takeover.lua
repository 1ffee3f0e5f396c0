-- Continues users of a bucket whose messages are in flight or have an unknown outcome: takes over each lease whose
-- deadline has passed. A message that is taken over may have been delivered before, and only the same credential can
-- reveal it. A lease that has this same owner already was made by a page call whose reply was lost. Nothing was sent
-- with it, unless it was held since. If another owner is sending with a grant to the user (see mark.lua), the message
-- is waited for like a lease whose deadline has not passed.
--
-- KEYS  1 users  2 leases  3 flight  4 tally  5 data  6 undelivered
-- ARGV  1 broadcast  2 owner from now on  3 lease in ms  4 seconds the broadcast's keys are kept  then openids
-- Reply  ms until the next of the remaining messages can be taken over (0: there are none), number of messages by
--        ending (see count_endings), then for each message taken over: openid, lease (see lease_reply), own data or ''
--- @include head/records head/leases head/mark head/broadcast
assert(#KEYS == 6 and #ARGV >= 5, 'takeover: wrong number of arguments')

local users, leases, flight = KEYS[1], KEYS[2], KEYS[3]
local id, owner, deadline = ARGV[1], ARGV[2], now_ms + tonumber(ARGV[3])
local openids, names = {}, {}
for i = 5, #ARGV do
  openids[i - 4], names[i - 4] = ARGV[i], message_name(id, ARGV[i])
end
local all_held = redis.call('HMGET', leases, unpack(names))
local flying = redis.call('SMISMEMBER', flight, unpack(openids))

local wait, reply, endings = 0, { 0, {} }, {}
for n, openid in ipairs(openids) do
  local held = all_held[n]
  if flying[n] == 1 and not held then
    -- The reaper ended the lease, after the maximum time that a message with unknown outcome is held.
    if redis.call('SREM', flight, openid) == 1 then
      endings[#endings + 1] = openid
      endings[#endings + 1] = 'UNKNOWN'
    end
  elseif flying[n] == 1 then
    local state, flags, expiry, tail, holder, held_until = unpack_lease(held)
    local left = held_until - now_ms
    local fresh = holder == owner and state % 2 == 0
    if fresh then left = 0 end
    local field = left <= 0 and flags >= 128 and (redis.call('HGET', users, openid) or '')
    if field then left = marks().busy_for(field, owner, holder) or 0 end
    if left > 0 then
      if wait == 0 or left < wait then wait = left end
    else
      if field then save(users, openid, marks().put_on(field, owner, deadline)) end
      if not fresh then state = 2 end
      redis.call('HSET', leases, names[n],
        lease_head(deadline, deadline, state, flags, expiry) .. message_who(owner, id, openid) .. tail)
      local own = redis.call('HGET', KEYS[5], openid)
      reply[#reply + 1] = openid
      reply[#reply + 1] = lease_packed(state, flags, expiry, tail, 0)
      reply[#reply + 1] = own or ''
    end
  end
end
reply[1], reply[2] = math.ceil(wait), count_endings(KEYS[4], KEYS[6], ARGV[4], endings)
return reply
