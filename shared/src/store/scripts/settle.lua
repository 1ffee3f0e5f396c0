-- Ends a lease by what became of its message, and, when asked, leases the next credential for the same message in the
-- same step. Fenced by the lease id: a lease that is gone (taken over, reaped, erased) changes nothing in stock.
--
-- KEYS  as lease.lua
-- ARGV  1 name of the lease  2 lease id  3 cap on records a user
--       4 what to do with the credential:
--           consume  the use is spent
--           return   it was not spent: back into stock
--           suspect  back into stock, but its message is gone and may have used it
--           discard  WeChat calls the credential dead: it goes, with all its uses
--           hold     in doubt: it stays with its request, which may be repeated at once
--       5 the outcome to keep under the request id ('' keeps none, so that it may be tried again)
--       6 seconds to keep it, or to hold
--       then only with a next lease: 7 its name  8 its id  9 lease in ms  10 margin in s  11 kinds
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:ledger <id> <id> 120 consume '' 86400
-- Reply  settled LEFT | stale LEFT | leased ... (see lease_reply) | none LEFT
assert((#KEYS == 3 or #KEYS == 4) and (#ARGV == 6 or #ARGV == 11), 'settle: wrong number of arguments')
assert(KEYS[4] or ARGV[4] ~= 'hold', 'settle: only a request can be repeated, and so be held for')

local users, leases, ledger = KEYS[1], KEYS[2], KEYS[3]
local name, id, cap, verdict, outcome, keep = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local next_name, next_id = ARGV[7], ARGV[8]

local packed = redis.call('HGET', leases, name)
local lease = packed and unpack_lease(packed)
if not lease or lease.owner ~= id then
  -- A repeat whose first reply was lost: the next lease is there already.
  local following = next_id and redis.call('HGET', leases, next_name)
  local there = following and unpack_lease(following)
  if there and there.owner == next_id then
    return lease_reply(there, uses_left(redis.call('HGET', users, there.openid) or ''))
  end
  return { 'stale', 0 }
end
if lease.state >= 4 then
  -- Its user was erased meanwhile; how the message ended may still be told to who repeats the request.
  if outcome ~= '' then
    redis.call('SET', KEYS[4], lease.fingerprint .. outcome, 'EX', keep)
    redis.call('HDEL', leases, name)
    redis.call('HINCRBY', ledger, 'lost', -1)
  end
  return { 'stale', 0 }
end

local field, expired = drop_expired(redis.call('HGET', users, lease.openid) or '')
tally(ledger, 'expired', expired)

if verdict == 'hold' then
  if expired > 0 then save(users, lease.openid, field) end
  lease.deadline, lease.turn, lease.state = now_ms, now_ms + tonumber(keep) * 1000, lease.state - lease.state % 2 + 1
  redis.call('HSET', leases, name, pack_lease(lease))
  return { 'settled', uses_left(field) }
end

if verdict == 'consume' then
  field = remove_record(field, lease, true)
  tally(ledger, 'consumed', 1)
elseif verdict == 'discard' then
  local uses
  field, uses = remove_record(field, lease, false)
  tally(ledger, 'discarded', 1 + uses)
elseif verdict == 'return' or verdict == 'suspect' then
  field = give_back(field, lease, verdict == 'suspect', cap, ledger)
else
  error('settle: unknown verdict')
end
if next_id then
  local following
  field, following = take(field, tonumber(ARGV[11]), tonumber(ARGV[10]), tonumber(ARGV[9]),
    lease.openid, next_id, lease.request, lease.fingerprint)
  if following then
    if next_name ~= name then redis.call('HDEL', leases, name) end
    redis.call('HSET', leases, next_name, pack_lease(following))
    save(users, lease.openid, field)
    return lease_reply(following, uses_left(field))
  end
end
redis.call('HDEL', leases, name)
save(users, lease.openid, field)
if outcome ~= '' and KEYS[4] then redis.call('SET', KEYS[4], lease.fingerprint .. outcome, 'EX', keep) end
return { next_id and 'none' or 'settled', uses_left(field) }
