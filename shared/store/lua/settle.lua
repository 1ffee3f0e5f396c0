-- Settles a lease. On request, leases the next credential for the same message in the same step. Fenced by the lease
-- id: for a lease that is gone (taken over, reaped, erased), nothing changes in stock.
--
-- KEYS  as in lease.lua
-- ARGV  1 openid  2 name of the lease  3 who (see leases.lua)  4 cap on records per user
--       5 how the lease ends for the credential:
--           consume  the message was delivered: the use is spent, and the user's last-messaged record is set. The use
--                    of a long-term subscription returns to stock, and the ledger counts it as collected again
--           unknown  like consume, for a message that may have been delivered; also counted separately
--           unknown_discard, unknown_void  like unknown for the leased use, and like discard or void for the rest
--           return   the use was not spent: it returns to stock
--           suspect  the outcome is unknown and nobody can repeat the message: the use returns to stock, marked as
--                    suspect, and the user's last-messaged record is set. An expired form id is spent as with unknown
--           discard  the message was not delivered, and WeChat rejected the credential as invalid: it is deleted with
--                    all its uses
--           void     the message was not delivered, and the user refuses the template: all grants of it are deleted
--           rest SECONDS  the message was not delivered, and WeChat may accept the credential later: see rest.lua. The
--                    use returns to stock. A prepay id rests for this time. So do the grants of the template, unless
--                    they have rested before: then they are deleted as with void. While they rest, nothing changes. If
--                    they were revoked meanwhile, so is the use
--           unknown_rest SECONDS  like unknown for the leased use, and like rest for the others
--           hold     the outcome is unknown: the credential stays with its request, which may be repeated immediately
--       6 the outcome to keep under the request id ('' keeps none, so that the request may be retried)
--       7 seconds to keep the outcome, or to hold the lease
--       then, if a next lease is requested: 8 its name  9 who  10 lease in ms  11 margin in s  12 kinds
--       13 the template whose grants may be leased, or ''. While another owner is sending with a grant to the user,
--         there is no next lease
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:ledger oUser <id> <who> 120
--       consume '' 86400
-- Reply  settled LEFT | stale LEFT | leased ... (see lease_reply) | none LEFT ENDS (as in lease.lua)
--- @include head/records head/leases head/mark head/take head/release head/left
assert((#KEYS == 3 or #KEYS == 4) and (#ARGV == 7 or #ARGV == 13), 'settle: wrong number of arguments')
assert(KEYS[4] or ARGV[5] ~= 'hold', 'settle: hold requires a request id')

local users, leases, ledger = KEYS[1], KEYS[2], KEYS[3]
local openid, name, who = ARGV[1], ARGV[2], ARGV[3]
local cap, verdict, outcome, keep = tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local next_name, next_who = ARGV[8], ARGV[9]

local held = redis.call('HGET', leases, name)
local state, flags, expiry, tail, holder
if held then state, flags, expiry, tail, holder = unpack_lease(held) end
if holder ~= sub(who, 1, 16) then
  -- Perhaps a repeated call whose first reply was lost. Then the next lease exists already, unless the user was erased.
  local following = next_who and redis.call('HGET', leases, next_name)
  if following then
    state, flags, expiry, tail, holder = unpack_lease(following)
    if state < 4 and holder == sub(next_who, 1, 16) then
      local field = drop_expired(redis.call('HGET', users, openid) or '')
      return lease_reply(state, flags, expiry, tail, messages_left(field))
    end
  end
  return { 'stale', 0 }
end

-- Stores the outcome that a repetition of the request returns.
local function keep_outcome()
  if outcome ~= '' and KEYS[4] then redis.call('SET', KEYS[4], sub(who, 17, 32) .. outcome, 'EX', keep) end
end

if state >= 4 then
  -- The user was erased while the message was in flight. A caller that repeats the request still gets the outcome.
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
if flags >= 128 then field = marks().take_off(field, holder) end

if verdict == 'hold' then
  if field ~= before then save(users, openid, field) end
  local head = lease_head(now_ms, now_ms + tonumber(keep) * 1000, state - state % 2 + 1, flags, expiry)
  redis.call('HSET', leases, name, head .. sub(held, 23))
  return { 'settled', messages_left(field) }
end

field = apply(verdict, field, flags, expiry, tail, cap, ledger)
local resting
if next_who then
  local deadline, next_flags, next_expiry, next_tail, _ = now_ms + tonumber(ARGV[10])
  field, next_flags, next_expiry, next_tail, _, resting =
    take(field, tonumber(ARGV[12]), tonumber(ARGV[11]), ARGV[13], sub(next_who, 1, 16), deadline)
  if next_flags then
    if next_name ~= name then redis.call('HDEL', leases, name) end
    redis.call('HSET', leases, next_name,
      lease_head(deadline, deadline, 0, next_flags, next_expiry) .. next_who .. next_tail)
    save(users, openid, field)
    return lease_reply(0, next_flags, next_expiry, next_tail, messages_left(field))
  end
end
redis.call('HDEL', leases, name)
save(users, openid, field)
keep_outcome()
if next_who then return { 'none', messages_left(field), resting or 0 } end
return { 'settled', messages_left(field) }
