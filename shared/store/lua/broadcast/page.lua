-- Takes the next users of a bucket out of the audience, leases a credential for each, and records them as in flight, in
-- one step. Each message takes a permit of the bucket. Repeating the call takes a second page; the first one stays in
-- flight under its owner.
--
-- KEYS  1 users  2 leases  3 ledger  4 todo  5 flight  6 tally  7 data  8 undelivered
--       9 permits
-- ARGV  1 broadcast  2 owner of the leases  3 number of users  4 lease in ms  5 margin before expiry in s
--       6 allowed kinds, one bit each  7 the template whose grants may be leased, or ''
--       8 minimum seconds since a user's last message, or the user is skipped (0: no user is). A lease counts as a
--         message, see recent.lua
--       9 seconds the broadcast's keys are kept  10 total permits granted to the bucket (see permit.lua)
-- Reply  number of users taken, 1 if no user of the audience waits any more, number of the users put back because
--        another owner is sending with a grant to them (see mark.lua), number of messages by ending (see
--        count_endings), the permits (see permits_reply), then for each user with a lease: openid, lease (see
--        lease_reply), own data or ''
--- @include head/records head/leases head/recent head/take head/broadcast head/table head/permits
assert(#KEYS == 9 and #ARGV == 10, 'page: wrong number of arguments')

local users, leases, ledger, flight = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local id, owner, deadline, margin, kinds = ARGV[1], ARGV[2], now_ms + tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local template, interval, keep = ARGV[7], tonumber(ARGV[8]), ARGV[9]

-- A replica may have become master before it received the end of the snapshot. The snapshot must then end first: see
-- snapshot.lua.
local received, returned, taken = read_permits(KEYS[9], tonumber(ARGV[10]))
if redis.call('HEXISTS', KEYS[6], 'cursor') == 1 then
  return { 0, 1, 0, {}, permits_reply(received, returned, taken, flight) }
end
-- No recipient is added from now on: see recipients.lua.
if redis.call('HSETNX', KEYS[6], 'begun', 1) == 1 then
  redis.call('EXPIRE', KEYS[6], keep)
  make_table(users)
end
local most = math.min(tonumber(ARGV[3]), math.max(0, received - returned - taken))
local openids = redis.call('SPOP', KEYS[4], most)
local through = #openids < most and 1 or 0
if #openids == 0 then return { 0, through, 0, {}, permits_reply(received, returned, taken, flight) } end
local fields = redis.call('HMGET', users, unpack(openids))

local endings, held, changed, ready, packed, busy = {}, {}, {}, {}, {}, {}
local gone, recent = 0, recently_messaged(leases, interval)
for i, openid in ipairs(openids) do
  local field, expired = drop_expired(fields[i] or '')
  local rest, flags, expiry, tail, wait = take(field, kinds, margin, template, owner, deadline)
  if not flags and not wait then
    endings[#endings + 1] = openid
    endings[#endings + 1] = 'NO_CREDENTIAL'
  elseif recent(openid, field) then
    endings[#endings + 1] = openid
    endings[#endings + 1] = 'RECENTLY_MESSAGED'
    rest = field
  elseif wait then
    busy[#busy + 1] = openid
    rest, expired = fields[i], 0
  else
    local n = #ready + 1
    ready[n], packed[n] = openid, lease_packed(0, flags, expiry, tail, 0)
    held[2 * n - 1] = message_name(id, openid)
    held[2 * n] = lease_head(deadline, deadline, 0, flags, expiry) .. message_who(owner, id, openid) .. tail
  end
  gone = gone + expired
  if rest == '' then
    if fields[i] then redis.call('HDEL', users, openid) end
  elseif rest ~= fields[i] then
    changed[#changed + 1] = openid
    changed[#changed + 1] = rest
  end
end
if #changed > 0 then redis.call('HSET', users, unpack(changed)) end
tally(ledger, 'expired', gone)
local noted = count_endings(KEYS[6], KEYS[8], keep, endings)

if #busy > 0 then
  redis.call('SADD', KEYS[4], unpack(busy))
  redis.call('EXPIRE', KEYS[4], keep)
end
taken = taken + #ready
if #ready > 0 then
  redis.call('HSET', KEYS[9], 'received', received, 'taken', taken)
  redis.call('EXPIRE', KEYS[9], keep)
  redis.call('HSET', leases, unpack(held))
  redis.call('SADD', flight, unpack(ready))
  redis.call('EXPIRE', flight, keep)
  -- The keys that these messages need later must not expire before them.
  redis.call('EXPIRE', KEYS[6], keep)
end
local reply = { #openids, through, #busy, noted, permits_reply(received, returned, taken, flight) }
if #ready > 0 then
  local data = redis.call('EXPIRE', KEYS[7], keep) == 1 and redis.call('HMGET', KEYS[7], unpack(ready)) or {}
  for n, openid in ipairs(ready) do
    local at = 3 * n + 2
    reply[at + 1], reply[at + 2], reply[at + 3] = openid, packed[n], data[n] or ''
  end
end
return reply
