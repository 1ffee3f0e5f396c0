-- Ends a lease by what became of its message, and, when asked, leases the next credential for the same message in the
-- same step. Fenced by the lease id: a lease that is gone (taken over, reaped, erased) changes nothing in stock.
--
-- KEYS  as lease.lua
-- ARGV  1 lease id  2 cap on records a user
--       3 what to do with the credential:
--           consume  the use is spent
--           return   it was not spent: back into stock
--           suspect  back into stock, but its message is gone and may have used it
--           discard  WeChat calls the credential dead: it goes, with all its uses
--           hold     in doubt: it stays with its message, which may be taken over at once
--       4 the outcome to keep under the request id ('' forgets the request, so that it may be tried again)
--       then only with a request id: 5 its fingerprint  6 seconds to keep the record
--       then only with a next lease: 7 its id  8 lease in ms  9 margin in s  10 kinds (5 and 6 empty without a request id)
--       e.g. EVALSHA sha 4 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:deadlines formid:{wx1:7}:ledger <id> 120 consume ''
-- Reply  settled LEFT | stale LEFT | leased ... (see lease_reply) | none LEFT
assert((#KEYS == 4 or #KEYS == 5) and (#ARGV == 4 or #ARGV == 6 or #ARGV == 10), 'settle: wrong number of arguments')
assert(KEYS[5] or ARGV[3] ~= 'hold', 'settle: only a request can be repeated, and so be held for')

local id, cap, verdict, outcome = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local fingerprint, keep, next_id = ARGV[5], ARGV[6], ARGV[7]
local holds_request = KEYS[5] and redis.call('GET', KEYS[5]) == 'u' .. fingerprint .. id

-- What the request id answers from now on.
local function close_request()
  if not holds_request then return end
  if outcome == '' then redis.call('DEL', KEYS[5]) else redis.call('SET', KEYS[5], 'f' .. fingerprint .. outcome, 'EX', keep) end
end

local packed = redis.call('HGET', KEYS[2], id)
if not packed then
  -- A repeat whose first reply was lost: the next lease is there already.
  local following = next_id and redis.call('HGET', KEYS[2], next_id)
  if following then
    local lease = unpack_lease(following)
    return lease_reply(lease, uses_left(redis.call('HGET', KEYS[1], lease.openid) or ''))
  end
  if verdict ~= 'hold' then close_request() end
  return { 'stale', 0 }
end

local lease = unpack_lease(packed)
local field, expired = drop_expired(redis.call('HGET', KEYS[1], lease.openid) or '')
tally(KEYS[4], 'expired', expired)

if verdict == 'hold' then
  if expired > 0 then save(KEYS[1], lease.openid, field) end
  lease.deadline, lease.state = now_ms, lease.state - lease.state % 2 + 1
  put_lease(KEYS[2], KEYS[3], id, lease, now_ms + tonumber(keep) * 1000)
  return { 'settled', uses_left(field) }
end

if verdict == 'consume' then
  field = remove_record(field, lease, true)
  tally(KEYS[4], 'consumed', 1)
elseif verdict == 'discard' then
  local uses
  field, uses = remove_record(field, lease, false)
  tally(KEYS[4], 'discarded', 1 + uses)
elseif verdict == 'return' or verdict == 'suspect' then
  field = give_back(field, lease, verdict == 'suspect', cap, KEYS[4])
else
  error('settle: unknown verdict')
end
remove_lease(KEYS[2], KEYS[3], id)

if next_id then
  local rest, following = lease_next(field, lease.openid, next_id, lease.request, fingerprint, keep,
    tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]))
  save(KEYS[1], lease.openid, rest)
  if following then return lease_reply(following, uses_left(rest)) end
  close_request()
  return { 'none', uses_left(rest) }
end
save(KEYS[1], lease.openid, field)
close_request()
return { 'settled', uses_left(field) }
