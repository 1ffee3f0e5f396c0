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
  local name, held = all[i], all[i + 1]
  local user, request = struct.unpack('Bc0Bc0', held, 55)
  if user == openid then
    uses = uses + 1
    -- A message of a broadcast (its request begins with a space) is kept from repetition by its user being forgotten there.
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
