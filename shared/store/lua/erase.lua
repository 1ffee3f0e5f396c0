-- Deletes what is stored for one user: stock and leases. Outcomes of requests contain nothing about the user and stay.
-- The lease of a request in flight stays without its data, so that repeating the request does not send the message
-- again.
--
-- KEYS  1 users  2 leases  3 ledger
-- ARGV  1 openid  2 seconds a request is kept
-- Reply  how many messages the user could have been sent
--- @include head/records head/leases
assert(#KEYS == 3 and #ARGV == 2, 'erase: wrong number of arguments')

local users, leases, ledger, openid = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local field, expired = drop_expired(redis.call('HGET', users, openid) or '')
local stop, uses = #field, 0
while stop > 0 do
  local start = start_of(field, stop)
  uses = uses + byte(field, start + 4) % 32
  stop = start - 1
end
redis.call('HDEL', users, openid)

-- All leases are read: few messages of one bucket are in flight.
local all = redis.call('HGETALL', leases)
for i = 1, #all, 2 do
  local name, held = all[i], all[i + 1]
  local _, _, _, _, _, _, user, request = unpack_lease(held)
  if user == openid then
    uses = uses + 1
    -- A message of a broadcast (its request begins with a space) is not repeated, because forget.lua removes its user
    -- from the broadcast.
    if request == '' or byte(request) == 32 then
      redis.call('HDEL', leases, name)
    else
      local head = lease_head(now_ms, now_ms + tonumber(ARGV[2]) * 1000, 4, 0, '\0\0\0\0')
      redis.call('HSET', leases, name, head .. sub(held, 23, 54) .. '\0\0')
      redis.call('HINCRBY', ledger, 'lost', 1)
    end
  end
end
tally(ledger, 'expired', expired)
tally(ledger, 'erased', uses)
return uses
