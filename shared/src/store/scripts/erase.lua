-- Deletes what is stored of one user: stock and leases. Records of requests hold nothing of the user and stay.
--
-- KEYS  1 users  2 leases  3 deadlines  4 ledger
-- ARGV  1 openid
-- Reply  how many messages the user could have been sent
assert(#KEYS == 4 and #ARGV == 1, 'erase: wrong number of arguments')

local openid = ARGV[1]
local field, expired = drop_expired(redis.call('HGET', KEYS[1], openid) or '')
local uses = uses_left(field)
redis.call('HDEL', KEYS[1], openid)

-- What is in flight in one bucket is few, so they are simply gone through.
local leases = redis.call('HGETALL', KEYS[2])
for i = 1, #leases, 2 do
  if unpack_lease(leases[i + 1]).openid == openid then
    remove_lease(KEYS[2], KEYS[3], leases[i])
    uses = uses + 1
  end
end
tally(KEYS[4], 'expired', expired)
tally(KEYS[4], 'erased', uses)
return uses
