-- Ends the leases of one bucket whose owner did not settle them. All replicas may run it concurrently.
--
-- A lease with a request id is held for that request as long as the request may be repeated: only the same message with
-- the same credential can reveal whether it was delivered. After that time, or immediately without a request id, the
-- message ends and its outcome stays unknown. The form id of a single message then returns to stock as suspect, unless
-- it has expired. Everything else is spent: a use of another kind, and the form id of a message of a broadcast, which
-- ends as UNKNOWN. The user's last-messaged record is set, since the message may have been sent at any time until the
-- deadline.
--
-- KEYS  1 users  2 leases  3 ledger
-- ARGV  1 cursor ('0' to begin)  2 approximate number of leases to process  3 seconds a request is kept
--       4 cap on records per user
-- Reply  the next cursor ('0' at the end), numbers of leases: held, returned to stock as suspect, spent
--- @include head/records head/leases head/mark head/release
assert(#KEYS == 3 and #ARGV == 4, 'reap: wrong number of arguments')

local users, leases, ledger = KEYS[1], KEYS[2], KEYS[3]
local keep_ms, cap = tonumber(ARGV[3]) * 1000, tonumber(ARGV[4])
local pinned, suspect, spent = 0, 0, 0
local page = redis.call('HSCAN', leases, ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local name, held = page[2][i], page[2][i + 1]
  local state, flags, expiry, tail, owner, deadline, openid, request, _, turn = unpack_lease(held)
  if turn <= now_ms then
    if state >= 4 then
      redis.call('HDEL', leases, name)
      redis.call('HINCRBY', ledger, 'lost', -1)
    elseif request ~= '' and state % 2 == 0 then
      redis.call('HSET', leases, name, lease_head(deadline, now_ms + keep_ms, state + 1, flags, expiry) .. sub(held, 23))
      pinned = pinned + 1
    else
      local field, gone = drop_expired(redis.call('HGET', users, openid) or '')
      tally(ledger, 'expired', gone)
      if flags >= 128 then field = marks().take_off(field, owner) end
      -- The request of a broadcast's message begins with a space.
      local verdict = 'unknown'
      if flags < 64 and byte(request) ~= 32 and expiry_at(expiry, 1) > now then
        verdict, suspect = 'suspect', suspect + 1
      else
        spent = spent + 1
      end
      field = apply(verdict, field, flags, expiry, tail, cap, ledger, math.min(now, math.floor(deadline / 1000)))
      save(users, openid, field)
      redis.call('HDEL', leases, name)
    end
  end
end
return { page[1], pinned, suspect, spent }
