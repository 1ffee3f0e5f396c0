-- Deletes what is stored of one user: stock and leases. Outcomes of requests hold nothing of the user and stay; so does,
-- emptied, the lease of a request that was under way, so that repeating it does not send the message a second time.
--
-- KEYS  1 users  2 leases  3 ledger
-- ARGV  1 openid  2 seconds a request is kept
-- Reply  how many messages the user could have been sent
assert(#KEYS == 3 and #ARGV == 2, 'erase: wrong number of arguments')

local users, leases, ledger, openid = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local field, expired = drop_expired(redis.call('HGET', users, openid) or '')
local uses = uses_left(field)
redis.call('HDEL', users, openid)

-- What is in flight in one bucket is few, so they are simply gone through.
local all = redis.call('HGETALL', leases)
for i = 1, #all, 2 do
  local name, lease = all[i], unpack_lease(all[i + 1])
  if lease.openid == openid then
    uses = uses + 1
    if lease.request == '' then
      redis.call('HDEL', leases, name)
    else
      lease.openid, lease.request, lease.tail, lease.state = '', '', '', 4
      lease.turn = now_ms + tonumber(ARGV[2]) * 1000
      redis.call('HSET', leases, name, pack_lease(lease))
      redis.call('HINCRBY', ledger, 'lost', 1)
    end
  end
end
tally(ledger, 'expired', expired)
tally(ledger, 'erased', uses)
return uses
