-- Leases one use of a user's credentials for one message, or tells what has become of the message already.
-- Repeating it with the same lease id answers the same lease.
--
-- KEYS  1 users  2 leases  3 deadlines  4 ledger  5 the request's record (only with a request id)
-- ARGV  1 openid  2 lease id (16 bytes)  3 lease in ms  4 margin before expiry in s  5 allowed kinds, as a bit each
--       then only with a request id: 6 request id  7 fingerprint of the message (16 bytes)  8 seconds to keep the record
--       e.g. EVALSHA sha 4 formid:{wx1:7}:users formid:{wx1:7}:leases formid:{wx1:7}:deadlines formid:{wx1:7}:ledger oUser <id> 30000 60 3
-- The request's record is 'u' fingerprint lease-id while it is under way, 'f' fingerprint outcome when it is finished.
-- Reply  leased ...       see lease_reply
--        none             no credential
--        finished OUTCOME the recorded outcome of this request id
--        under_way MS     another owner has it for so long
--        reused           the request id belongs to another message
--        lost             it was under way, and its lease is gone: the user was erased meanwhile
assert((#KEYS == 4 and #ARGV == 5) or (#KEYS == 5 and #ARGV == 8), 'lease: wrong number of arguments')

local openid, id = ARGV[1], ARGV[2]
local lease_ms, margin, kinds = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local request, fingerprint, keep = ARGV[6] or '', ARGV[7], ARGV[8]

local mine = redis.call('HGET', KEYS[2], id)
if mine then
  local lease = unpack_lease(mine)
  return lease_reply(lease, uses_left(redis.call('HGET', KEYS[1], openid) or ''))
end

if request ~= '' then
  local record = redis.call('GET', KEYS[5])
  if record then
    if sub(record, 2, 17) ~= fingerprint then return { 'reused' } end
    if byte(record) == 102 then return { 'finished', sub(record, 18) } end
    local holder = sub(record, 18)
    local held = redis.call('HGET', KEYS[2], holder)
    if not held then return { 'lost' } end
    local lease = unpack_lease(held)
    if lease.deadline > now_ms then return { 'under_way', math.ceil(lease.deadline - now_ms) } end
    -- Its owner is gone, and bytes may have left: the same message goes on with the same credential.
    lease.deadline, lease.state = now_ms + lease_ms, 2
    remove_lease(KEYS[2], KEYS[3], holder)
    put_lease(KEYS[2], KEYS[3], id, lease, lease.deadline)
    redis.call('SET', KEYS[5], 'u' .. fingerprint .. id, 'EX', keep)
    return lease_reply(lease, uses_left(redis.call('HGET', KEYS[1], openid) or ''))
  end
end

local field, expired = drop_expired(redis.call('HGET', KEYS[1], openid) or '')
local rest, lease = lease_next(field, openid, id, request, fingerprint, keep, lease_ms, margin, kinds)
if lease or expired > 0 then save(KEYS[1], openid, rest) end
tally(KEYS[4], 'expired', expired)
if not lease then return { 'none' } end
return lease_reply(lease, uses_left(rest))
