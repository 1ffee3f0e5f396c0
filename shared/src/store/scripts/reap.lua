-- Looks after leases of one bucket whose owner did not come back. Every replica may run it at once.
--
-- A lease with a request id is pinned to it for as long as the request may be repeated: only the same message with the
-- same credential can tell whether it had been delivered. When that time is up, or when there was no request id, the
-- message is gone: a form id goes back into stock as suspect, a use of anything else counts as spent on a message of which
-- nobody knows whether it was delivered, and its user as touched.
--
-- KEYS  1 users  2 leases  3 ledger
-- ARGV  1 cursor ('0' to begin)  2 about how many leases to look at  3 seconds a request is kept  4 cap on records a user
-- Reply  the next cursor ('0' at the end), how many were: pinned, put back as suspect, spent, expired
assert(#KEYS == 3 and #ARGV == 4, 'reap: wrong number of arguments')

local users, leases, ledger = KEYS[1], KEYS[2], KEYS[3]
local keep_ms, cap = tonumber(ARGV[3]) * 1000, tonumber(ARGV[4])
local pinned, suspect, spent, expired = 0, 0, 0, 0
local page = redis.call('HSCAN', leases, ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local name, held = page[2][i], page[2][i + 1]
  local deadline, turn, state, flags = struct.unpack('>ddBB', held)
  if turn <= now_ms then
    local openid, request, rest = struct.unpack('Bc0Bc0', held, 55)
    local expiry, tail = sub(held, 19, 22), sub(held, rest)
    if state >= 4 then
      redis.call('HDEL', leases, name)
      redis.call('HINCRBY', ledger, 'lost', -1)
    elseif request ~= '' and state % 2 == 0 then
      redis.call('HSET', leases, name, lease_head(deadline, now_ms + keep_ms, state + 1, flags, expiry) .. sub(held, 23))
      pinned = pinned + 1
    else
      local field, gone = drop_expired(redis.call('HGET', users, openid) or '')
      tally(ledger, 'expired', gone)
      if flags >= 128 then field = marks().take_off(field, sub(held, 23, 38)) end
      if flags >= 64 then
        field = apply('unknown', field, flags, expiry, tail, cap, ledger)
        spent = spent + 1
      else
        if expiry_at(expiry, 1) <= now then expired = expired + 1 else suspect = suspect + 1 end
        field = give_back(field, flags, expiry, tail, true, cap, ledger)
      end
      save(users, openid, field)
      redis.call('HDEL', leases, name)
    end
  end
end
return { page[1], pinned, suspect, spent, expired }
