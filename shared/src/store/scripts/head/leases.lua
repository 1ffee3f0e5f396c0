-- Leases: what is in flight. Put after records.lua, before every script that touches one.
--
-- A lease holds one use of one credential for one message. The record it came from stays in the user's field with that
-- use taken off, so a form id in flight is still known as a duplicate.
--
-- A message with a request id has its lease under that id, so whoever repeats the request finds it; any other has it
-- under the lease id. The owner, a lease id too, fences: who is not the owner any more changes nothing. A lease has two
-- clocks: its deadline, until which its owner has it alone, and its turn, when the reaper next looks at it.
--
-- Packed: deadline and turn in ms (8 bytes each), state (1), flags of the record (1), expiry (4), owner (16),
-- fingerprint of the message (16; zeros without a request id), openid and request id (a length byte and its bytes each),
-- tail of the record (the rest).
-- State adds up: 1 the reaper pinned it to its request; 2 it was taken over, so bytes may have left before;
-- 4 its user was erased, and it only tells that the message was under way (counted in the ledger as "lost").

local now_ms = now * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function pack_lease(lease)
  return struct.pack('>ddBBI4c16c16Bc0Bc0c0', lease.deadline, lease.turn, lease.state, lease.flags, lease.expiry,
    lease.owner, lease.fingerprint, #lease.openid, lease.openid, #lease.request, lease.request, lease.tail)
end

local function unpack_lease(packed)
  local deadline, turn, state, flags, expiry, owner, fingerprint, openid, request, rest =
    struct.unpack('>ddBBI4c16c16Bc0Bc0', packed)
  return { deadline = deadline, turn = turn, state = state, flags = flags, expiry = expiry, owner = owner,
    fingerprint = fingerprint, openid = openid, request = request, tail = sub(packed, rest) }
end

-- What the caller of lease.lua or settle.lua gets for a lease: flags, expiry, tail, whether it was taken over, uses
-- left in the user's field, the time now.
local function lease_reply(lease, left)
  return { 'leased', lease.flags, lease.expiry, lease.tail, math.floor(lease.state / 2) % 2, left, now }
end
