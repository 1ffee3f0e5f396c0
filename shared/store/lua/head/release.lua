-- Ending a leased use. A lease is passed as its flags, its expiry (four bytes) and its tail.
--- @include head/records head/stock head/cap head/touch head/grants head/void head/rest

-- Returns a leased use to the field, unless it has expired. `mark` sets the suspect flag.
local function give_back(field, flags, expiry, tail, mark, cap, ledger)
  if expiry_at(expiry, 1) <= now then
    tally(ledger, 'expired', 1)
    return field
  end
  if mark and flags % 64 < 32 then flags = flags + 32 end
  local start = locate(field, tail)
  if start then
    local old = byte(field, start + 4)
    if mark and old % 64 < 32 then old = old + 32 end
    -- The record is full: the cap dropped it while this use was leased, and it was collected again.
    if old % 32 == 31 then tally(ledger, 'dropped', 1) else old = old + 1 end
    return sub(field, 1, start + 3) .. string.char(old) .. sub(field, start + 5)
  end
  field = insert(field, expiry .. string.char(flags + 1) .. tail)
  local dropped
  field, dropped = enforce_cap(field, cap)
  tally(ledger, 'dropped', dropped)
  return field
end

-- Deletes the record of a lease from the field. Returns the field and the number of uses deleted with it.
local function remove_record(field, tail, only_if_spent)
  local start, stop = locate(field, tail)
  if not start then return field, 0 end
  local uses = byte(field, start + 4) % 32
  if only_if_spent and uses > 0 then return field, 0 end
  return sub(field, 1, start - 1) .. sub(field, stop + 1), uses
end

-- Ends the use of a grant whose record stays. The uses of a grant are interchangeable, so none is marked as suspect. If
-- the record is gone or full, a use that was not spent goes to any record with room.
local function release_grant(spent, field, tail, cap, ledger)
  local template, long_term = sub(tail, 1, -3), byte(tail, #tail - 1) == 127
  if spent and not long_term then return (remove_record(field, tail, true)) end
  local start = locate(field, tail)
  local uses, dropped = start and byte(field, start + 4) % 32
  if long_term and uses ~= 0 then
    -- The subscription was revoked while its use was leased, so the use has no record to return to.
    if not spent then tally(ledger, 'discarded', 1) end
    return field
  end
  if uses and uses < 31 then
    -- The spent use of a long-term subscription returns. It counts as collected again, so that the ledger adds up.
    if spent then tally(ledger, 'collected', 1) end
    return sub(field, 1, start + 3) .. string.char(byte(field, start + 4) + 1) .. sub(field, start + 5)
  end
  field, uses = add_uses(field, template, 1)
  field, dropped = enforce_cap(field, cap)
  tally(ledger, 'dropped', uses + dropped)
  return field
end

-- Resolves the verdicts "rest SECONDS" and "unknown_rest SECONDS": returns the verdict that the use ends with, and when
-- the rest ends that then begins; nil if none begins.
local function resolve_rest(verdict, field, flags, tail)
  local unknown, ends = sub(verdict, 1, 7) == 'unknown', now + tonumber(string.match(verdict, '%d+$'))
  local kept = unknown and 'unknown' or 'return'
  if flags < 128 then return kept, flags >= 64 and ends or nil end
  local template, stop, any, ended = sub(tail, 1, -3), #field
  while stop > 0 do
    local start = start_of(field, stop)
    if is_grant_of(field, start, stop, template) then
      any = true
      if byte(field, start + 4) >= 160 then ended = math.max(ended or 0, expiry_at(field, start) - rest_span) end
    end
    stop = start - 1
  end
  -- Revoked while the use was leased.
  if not any then return unknown and 'unknown' or 'discard' end
  if not ended then return kept, ends end
  -- Another message was in flight when the rest began.
  if ended > now then return kept end
  return unknown and 'unknown_void' or 'void'
end

-- Returns the field after a leased use has ended as `verdict` says (see settle.lua; "hold" ends nothing). If the
-- message was delivered or may have been, sets the last-messaged record to `sent_at` (now by default).
local function apply(verdict, field, flags, expiry, tail, cap, ledger, sent_at)
  -- An expired suspect form id cannot return to stock: it is spent like any other credential of a message with unknown
  -- outcome.
  if verdict == 'suspect' and flags < 128 and expiry_at(expiry, 1) <= now then verdict = 'unknown' end
  local rests
  if byte(verdict, -1) <= 57 then verdict, rests = resolve_rest(verdict, field, flags, tail) end
  local unknown = sub(verdict, 1, 7) == 'unknown'
  local spent = unknown or verdict == 'consume'
  if spent then tally(ledger, 'consumed', 1) end
  if unknown then tally(ledger, 'unknown', 1) end
  if verdict == 'discard' or verdict == 'void' or verdict == 'unknown_discard' or verdict == 'unknown_void' then
    local uses
    if flags >= 128 and sub(verdict, -4) == 'void' then
      field, uses = void_grants(field, sub(tail, 1, -3))
    else
      field, uses = remove_record(field, tail, false)
    end
    tally(ledger, 'discarded', spent and uses or uses + 1)
  elseif flags >= 128 then
    field = release_grant(spent, field, tail, cap, ledger)
  elseif spent then
    field = remove_record(field, tail, true)
  else
    assert(verdict == 'return' or verdict == 'suspect', 'unknown verdict')
    field = give_back(field, flags, expiry, tail, verdict == 'suspect', cap, ledger)
  end
  if flags >= 128 and (rests or flags >= 160 and verdict == 'consume') then
    field = set_rest(field, sub(tail, 1, -3), rests)
  elseif rests and not string.find(field, rest_mark(tail), 1, true) then
    field = insert(field, struct.pack('>I4', rests) .. rest_mark(tail))
  end
  if spent or verdict == 'suspect' then field = touch(field, sent_at or now) end
  return field
end
