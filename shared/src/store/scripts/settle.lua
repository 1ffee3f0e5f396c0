-- Ends a lease by what became of its message, and, when asked, leases the next credential for the same message in the
-- same step. Fenced by the lease id: a lease that is gone (taken over, reaped, erased) changes nothing in stock.
--
-- KEYS  as lease.lua
-- ARGV  1 openid  2 name of the lease  3 who (see leases.lua)  4 cap on records a user
--       5 what to do with the credential:
--           consume  the use is spent, and the user touched: the message was delivered. Of a long-term subscription it
--                    comes back, and counts as collected once more
--           unknown  the same where the message may have been delivered; counted apart too
--           unknown_discard, unknown_void  the same for the use, and the rest goes as with discard or void
--           return   it was not spent: back into stock
--           suspect  back into stock, but its message is gone and may have used it: the user is touched. A form id that has
--                    expired by now is spent as with unknown
--           discard  WeChat calls the credential dead, and the message was not delivered: it goes, with all its uses
--           void     the user refuses the template, and the message was not delivered: all grants of it go
--           hold     in doubt: it stays with its request, which may be repeated at once
--       6 the outcome to keep under the request id ('' keeps none, so that it may be tried again)
--       7 seconds to keep it, or to hold
--       then only with a next lease: 8 its name  9 who  10 lease in ms  11 margin in s  12 kinds
--       13 the template of which a grant may be leased, or ''. While somebody else sends with a grant to the user there is no
--       next one
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:ledger oUser <id> <who> 120 consume '' 86400
-- Reply  settled LEFT | stale LEFT | leased ... (see lease_reply) | none LEFT
assert((#KEYS == 3 or #KEYS == 4) and (#ARGV == 7 or #ARGV == 13), 'settle: wrong number of arguments')
assert(KEYS[4] or ARGV[5] ~= 'hold', 'settle: only a request can be repeated, and so be held for')

local users, leases, ledger = KEYS[1], KEYS[2], KEYS[3]
local openid, name, who = ARGV[1], ARGV[2], ARGV[3]
local cap, verdict, outcome, keep = tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local next_name, next_who = ARGV[8], ARGV[9]

local held = redis.call('HGET', leases, name)
if not held or sub(held, 23, 38) ~= sub(who, 1, 16) then
  -- A repeat whose first reply was lost: the next lease is there already, unless its user was erased since.
  local following = next_who and redis.call('HGET', leases, next_name)
  if following and byte(following, 17) < 4 and sub(following, 23, 38) == sub(next_who, 1, 16) then
    return lease_reply(byte(following, 17), byte(following, 18), sub(following, 19, 22), sub(following, 23 + #next_who),
      uses_left((drop_expired(redis.call('HGET', users, openid) or ''))))
  end
  return { 'stale', 0 }
end
local state, flags, expiry, tail = byte(held, 17), byte(held, 18), sub(held, 19, 22), sub(held, 23 + #who)

-- What the request id answers from now on.
local function keep_outcome()
  if outcome ~= '' and KEYS[4] then redis.call('SET', KEYS[4], sub(who, 17, 32) .. outcome, 'EX', keep) end
end

if state >= 4 then
  -- Its user was erased meanwhile; how the message ended may still be told to who repeats the request.
  if outcome ~= '' then
    keep_outcome()
    redis.call('HDEL', leases, name)
    redis.call('HINCRBY', ledger, 'lost', -1)
  end
  return { 'stale', 0 }
end

local before = redis.call('HGET', users, openid) or ''
local field, expired = drop_expired(before)
tally(ledger, 'expired', expired)
if flags >= 128 then field = marks().take_off(field, sub(who, 1, 16)) end

if verdict == 'hold' then
  if field ~= before then save(users, openid, field) end
  local head = lease_head(now_ms, now_ms + tonumber(keep) * 1000, state - state % 2 + 1, flags, expiry)
  redis.call('HSET', leases, name, head .. sub(held, 23))
  return { 'settled', uses_left(field) }
end

field = apply(verdict, field, flags, expiry, tail, cap, ledger)
if next_who then
  local deadline, next_flags, next_expiry, next_tail = now_ms + tonumber(ARGV[10])
  field, next_flags, next_expiry, next_tail =
    take(field, tonumber(ARGV[12]), tonumber(ARGV[11]), ARGV[13], sub(next_who, 1, 16), deadline)
  if next_flags then
    if next_name ~= name then redis.call('HDEL', leases, name) end
    redis.call('HSET', leases, next_name,
      lease_head(deadline, deadline, 0, next_flags, next_expiry) .. next_who .. next_tail)
    save(users, openid, field)
    return lease_reply(0, next_flags, next_expiry, next_tail, uses_left(field))
  end
end
redis.call('HDEL', leases, name)
save(users, openid, field)
keep_outcome()
return { next_who and 'none' or 'settled', uses_left(field) }
