-- Leases one use of a user's credentials for one message, or returns what is known about the message already. Repeating
-- the call with the same lease id returns the same lease.
--
-- KEYS  1 users  2 leases  3 ledger  4 the request's outcome (only with a request id)
-- ARGV  1 openid  2 name of the lease: that of the request, or the lease id if there is no request id
--       3 who (see leases.lua)  4 lease in ms  5 margin before expiry in s  6 allowed kinds, one bit each
--       7 the template whose grants may be leased, or ''
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:ledger oUser <id> <who> 30000 60 3
--       ''
-- Reply  leased ...       see lease_reply
--        none ENDS        no credential; when the first rest of one ends that rests (seconds since 1970), or 0
--        finished OUTCOME the recorded outcome of this request id
--        under_way MS     another owner has the lease for this time
--        reused           the request id belongs to another message
--        lost             the message was in flight when its user was erased
--        busy MS          another owner is sending with a grant to the user for this time (see mark.lua); nothing
--                         changed
--- @include head/records head/leases head/mark head/take head/left
assert((#KEYS == 3 or #KEYS == 4) and #ARGV == 7, 'lease: wrong number of arguments')

local users, leases, name, who = KEYS[1], KEYS[2], ARGV[2], ARGV[3]
local deadline = now_ms + tonumber(ARGV[4])

local outcome = KEYS[4] and redis.call('GET', KEYS[4])
if outcome then
  if sub(outcome, 1, 16) ~= sub(who, 17, 32) then return { 'reused' } end
  return { 'finished', sub(outcome, 17) }
end

local field, expired = drop_expired(redis.call('HGET', users, ARGV[1]) or '')
local owner = sub(who, 1, 16)
local kinds, margin = tonumber(ARGV[6]), tonumber(ARGV[5])
local rest, flags, expiry, tail, busy, resting = take(field, kinds, margin, ARGV[7], owner, deadline)
local fresh = flags and
  redis.call('HSETNX', leases, name, lease_head(deadline, deadline, 0, flags, expiry) .. who .. tail) == 1
local held = not fresh and redis.call('HGET', leases, name)
if held then
  -- The message has a lease already, or this call is a repetition whose first reply was lost.
  local state, flags, expiry, tail, holder, held_until, _, _, fingerprint = unpack_lease(held)
  if fingerprint ~= sub(who, 17, 32) then return { 'reused' } end
  if state >= 4 then return { 'lost' } end
  local granted, left = flags >= 128, held_until - now_ms
  if holder ~= owner and left > 0 then return { 'under_way', math.ceil(left) } end
  busy = granted and marks().busy_for(field, owner, holder)
  if busy then return { 'busy', busy } end
  if holder ~= owner then
    -- The owner did not settle the lease, and bytes may have been sent: the same message continues with the same
    -- credential.
    state = 2
    redis.call('HSET', leases, name, lease_head(deadline, deadline, state, flags, expiry) .. who .. tail)
    if granted then
      field = marks().put_on(field, owner, deadline)
      save(users, ARGV[1], field)
      tally(KEYS[3], 'expired', expired)
    end
  end
  return lease_reply(state, flags, expiry, tail, messages_left(field))
end
if busy then return { 'busy', busy } end
if fresh or expired > 0 then save(users, ARGV[1], rest) end
tally(KEYS[3], 'expired', expired)
if not fresh then return { 'none', resting or 0 } end
return lease_reply(0, flags, expiry, tail, messages_left(rest))
