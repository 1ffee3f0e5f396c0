-- Takes the next users of a bucket, leases a credential for each, and notes them in flight, all in one step.
--
-- KEYS  1 users  2 leases  3 ledger  4 todo  5 flight  6 tally  7 data  8 undelivered
-- ARGV  1 broadcast  2 owner of the leases  3 how many users  4 lease in ms  5 margin before expiry in s
--       6 allowed kinds, as a bit each  7 the template of which a grant may be leased, or ''
--       8 seconds since a user's last message, below which the user is skipped (0: none is)
--       9 seconds the broadcast's keys are kept
-- Reply  how many users were taken, how many of them were put back since somebody else sends with a grant to them (see
--        mark.lua), how many ended how (see count_endings), then for each that has a lease: openid, lease (see
--        lease_reply), data of its own or ''
assert(#KEYS == 8 and #ARGV == 9, 'page: wrong number of arguments')

local users, leases, ledger, flight = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local id, owner, deadline, margin, kinds = ARGV[1], ARGV[2], now_ms + tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local template, interval, keep = ARGV[7], tonumber(ARGV[8]), ARGV[9]

-- Where a replica became master that had not heard of the end of the snapshot, it has to end first: see snapshot.lua.
if redis.call('HEXISTS', KEYS[6], 'cursor') == 1 then return { 0, 0, {} } end
-- From now on nobody is added: see recipients.lua.
if redis.call('HSETNX', KEYS[6], 'begun', 1) == 1 then
  redis.call('EXPIRE', KEYS[6], keep)
  make_table(users)
end
local openids = redis.call('SPOP', KEYS[4], ARGV[3])
if #openids == 0 then return { 0, 0, {} } end
local fields = redis.call('HMGET', users, unpack(openids))

local endings, held, changed, ready, packed, busy = {}, {}, {}, {}, {}, {}
local gone = 0
for i, openid in ipairs(openids) do
  local field, expired = drop_expired(fields[i] or '')
  local rest, flags, expiry, tail, wait = take(field, kinds, margin, template, owner, deadline)
  local touched = (flags or wait) and interval > 0 and touched_at(field)
  if not flags and not wait then
    endings[#endings + 1] = openid
    endings[#endings + 1] = 'NO_CREDENTIAL'
  elseif touched and touched > now - interval then
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
local reply = { #openids, #busy, noted }
if #ready > 0 then
  redis.call('HSET', leases, unpack(held))
  redis.call('SADD', flight, unpack(ready))
  redis.call('EXPIRE', flight, keep)
  -- What these messages need again must not go before them.
  redis.call('EXPIRE', KEYS[6], keep)
  local data = redis.call('EXPIRE', KEYS[7], keep) == 1 and redis.call('HMGET', KEYS[7], unpack(ready)) or {}
  for n, openid in ipairs(ready) do
    reply[3 * n + 1], reply[3 * n + 2], reply[3 * n + 3] = openid, packed[n], data[n] or ''
  end
end
return reply
