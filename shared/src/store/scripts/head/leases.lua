-- Leases: what is in flight. Put after records.lua, before every script that touches one.
--
-- A lease holds one use of one credential for one message. The record it came from stays in the user's field with that
-- use taken off, so a form id in flight is still known as a duplicate. A lease has two clocks: its deadline, until
-- which its owner has it alone, and its score in the sorted set, when the reaper next looks at it.
--
-- Packed: deadline in ms (8 bytes), state (1: 1 once the reaper pinned it, plus 2 once it was taken over, which means
-- that bytes may have left before), flags of the record (1), expiry (4), openid and request id (a length byte and its
-- bytes each; no request id: length 0), tail of the record (the rest).

local now_ms = now * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function pack_lease(lease)
  return struct.pack('>dBBI4Bc0Bc0c0', lease.deadline, lease.state, lease.flags, lease.expiry,
    #lease.openid, lease.openid, #lease.request, lease.request, lease.tail)
end

local function unpack_lease(packed)
  local deadline, state, flags, expiry, openid, request, rest = struct.unpack('>dBBI4Bc0Bc0', packed)
  return { deadline = deadline, state = state, flags = flags, expiry = expiry,
    openid = openid, request = request, tail = sub(packed, rest) }
end

local function put_lease(leases, deadlines, id, lease, score)
  redis.call('HSET', leases, id, pack_lease(lease))
  redis.call('ZADD', deadlines, score, id)
end

local function remove_lease(leases, deadlines, id)
  redis.call('HDEL', leases, id)
  redis.call('ZREM', deadlines, id)
end

-- What the caller of lease.lua or settle.lua gets for a lease: flags, expiry, tail, whether it was taken over, uses
-- left in the user's field, the time now.
local function lease_reply(lease, left)
  return { 'leased', lease.flags, lease.expiry, lease.tail, math.floor(lease.state / 2), left, now }
end

-- Takes one use of the soonest-to-expire record of an allowed kind that lives longer than the margin.
-- Returns the new field, flags, expiry and tail; the field alone when there is none.
local function take(field, kinds, margin)
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    if flags % 32 > 0 and bit.band(kinds, bit.lshift(1, math.floor(flags / 64))) ~= 0 then
      local expiry = expiry_at(field, start)
      if expiry > now + margin then
        return sub(field, 1, start + 3) .. char(flags - 1) .. sub(field, start + 5), flags, expiry, sub(field, start + 5, stop)
      end
    end
    stop = start - 1
  end
  return field
end

-- Leases one use for a message and notes it under way. KEYS as in lease.lua. Nothing when there is no credential.
local function lease_next(field, openid, id, request, fingerprint, keep, lease_ms, margin, kinds)
  local rest, flags, expiry, tail = take(field, kinds, margin)
  if not flags then return rest, nil end
  local lease = { deadline = now_ms + lease_ms, state = 0, flags = flags - flags % 32, expiry = expiry,
    openid = openid, request = request, tail = tail }
  put_lease(KEYS[2], KEYS[3], id, lease, lease.deadline)
  if request ~= '' then redis.call('SET', KEYS[5], 'u' .. fingerprint .. id, 'EX', keep) end
  return rest, lease
end

-- Gives a leased use back to the field, unless its time is up; `mark` sets the suspect flag.
local function give_back(field, lease, mark, cap, ledger)
  if lease.expiry <= now then
    tally(ledger, 'expired', 1)
    return field
  end
  local flags = lease.flags
  if mark and flags % 64 < 32 then flags = flags + 32 end
  local start = locate(field, lease.tail)
  if start then
    local old = byte(field, start + 4)
    if mark and old % 64 < 32 then old = old + 32 end
    -- Full: the cap dropped it while this use was leased, and it was collected anew.
    if old % 32 == 31 then tally(ledger, 'dropped', 1) else old = old + 1 end
    return sub(field, 1, start + 3) .. char(old) .. sub(field, start + 5)
  end
  field = insert(field, struct.pack('>I4B', lease.expiry, flags + 1) .. lease.tail)
  local dropped
  field, dropped = enforce_cap(field, cap)
  tally(ledger, 'dropped', dropped)
  return field
end

-- Takes the record of a lease out of the field for good; returns the field and the uses that went with it.
local function remove_record(field, lease, only_if_spent)
  local start, stop = locate(field, lease.tail)
  if not start then return field, 0 end
  local uses = byte(field, start + 4) % 32
  if only_if_spent and uses > 0 then return field, 0 end
  return sub(field, 1, start - 1) .. sub(field, stop + 1), uses
end
