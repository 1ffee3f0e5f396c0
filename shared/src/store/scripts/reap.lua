-- Looks after leases of one bucket whose owner did not come back. Every replica may run it at once.
--
-- A lease with a request id is pinned to it for as long as the request may be repeated: only the same message with the
-- same credential can tell whether it had been delivered. When that time is up, or when there was no request id, the
-- message is gone: a form id goes back into stock as suspect, a use of anything else counts as spent.
--
-- KEYS  1 users  2 leases  3 deadlines  4 ledger
-- ARGV  1 the most leases to look at  2 seconds a request is kept  3 cap on records a user
-- Reply  how many were: pinned, put back as suspect, spent, expired
assert(#KEYS == 4 and #ARGV == 3, 'reap: wrong number of arguments')

local keep_ms, cap = tonumber(ARGV[2]) * 1000, tonumber(ARGV[3])
local pinned, suspect, spent, expired = 0, 0, 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms, 'LIMIT', 0, ARGV[1])) do
  local packed = redis.call('HGET', KEYS[2], id)
  if not packed then
    redis.call('ZREM', KEYS[3], id)
  else
    local lease = unpack_lease(packed)
    if lease.request ~= '' and lease.state % 2 == 0 then
      lease.state = lease.state + 1
      put_lease(KEYS[2], KEYS[3], id, lease, now_ms + keep_ms)
      pinned = pinned + 1
    else
      local field, gone = drop_expired(redis.call('HGET', KEYS[1], lease.openid) or '')
      tally(KEYS[4], 'expired', gone)
      if lease.flags >= 64 then
        field = remove_record(field, lease, true)
        tally(KEYS[4], 'consumed', 1)
        spent = spent + 1
      else
        if lease.expiry <= now then expired = expired + 1 else suspect = suspect + 1 end
        field = give_back(field, lease, true, cap, KEYS[4])
      end
      save(KEYS[1], lease.openid, field)
      remove_lease(KEYS[2], KEYS[3], id)
    end
  end
end
return { pinned, suspect, spent, expired }
