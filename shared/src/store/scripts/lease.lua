-- Leases one use of a user's credentials for one message, or tells what has become of the message already.
-- Repeating it with the same lease id answers the same lease.
--
-- KEYS  1 users  2 leases  3 ledger  4 the request's outcome (only with a request id)
-- ARGV  1 openid  2 name of the lease: the request's, or the lease id where there is no request id
--       3 lease id (16 bytes)  4 lease in ms  5 margin before expiry in s  6 allowed kinds, as a bit each
--       then only with a request id: 7 request id  8 fingerprint of the message (16 bytes)
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:ledger oUser <id> <id> 30000 60 3
-- Reply  leased ...       see lease_reply
--        none             no credential
--        finished OUTCOME the recorded outcome of this request id
--        under_way MS     another owner has it for so long
--        reused           the request id belongs to another message
--        lost             it was under way when its user was erased
assert((#KEYS == 3 and #ARGV == 6) or (#KEYS == 4 and #ARGV == 8), 'lease: wrong number of arguments')

local users, leases = KEYS[1], KEYS[2]
local openid, name, id = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, margin, kinds = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local request, fingerprint = ARGV[7] or '', ARGV[8] or string.rep('\0', 16)

if request ~= '' then
  local outcome = redis.call('GET', KEYS[4])
  if outcome then
    if sub(outcome, 1, 16) ~= fingerprint then return { 'reused' } end
    return { 'finished', sub(outcome, 17) }
  end
  local held = redis.call('HGET', leases, name)
  if held then
    local lease = unpack_lease(held)
    if lease.fingerprint ~= fingerprint then return { 'reused' } end
    if lease.state >= 4 then return { 'lost' } end
    if lease.owner ~= id then
      if lease.deadline > now_ms then return { 'under_way', math.ceil(lease.deadline - now_ms) } end
      -- Its owner is gone, and bytes may have left: the same message goes on with the same credential.
      lease.deadline, lease.state, lease.owner = now_ms + lease_ms, 2, id
      lease.turn = lease.deadline
      redis.call('HSET', leases, name, pack_lease(lease))
    end
    return lease_reply(lease, uses_left(redis.call('HGET', users, openid) or ''))
  end
end

local field, expired = drop_expired(redis.call('HGET', users, openid) or '')
local rest, lease = take(field, kinds, margin, lease_ms, openid, id, request, fingerprint)
-- Asked again after a lost reply: the lease is there. With a request id it was found above.
if lease and redis.call('HSETNX', leases, name, pack_lease(lease)) == 0 or not lease and request == '' then
  local mine = redis.call('HGET', leases, name)
  if mine then return lease_reply(unpack_lease(mine), uses_left(field)) end
end
if lease or expired > 0 then save(users, openid, rest) end
tally(KEYS[3], 'expired', expired)
if not lease then return { 'none' } end
return lease_reply(lease, uses_left(rest))
