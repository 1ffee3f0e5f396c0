-- How a leased use ends. Put after cap.lua, touch.lua, leases.lua and grants.lua, before the scripts that end leases. A
-- lease is given by its flags, its expiry (four bytes) and its tail.

-- Gives a leased use back to the field, unless its time is up; `mark` sets the suspect flag.
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
    -- Full: the cap dropped it while this use was leased, and it was collected anew.
    if old % 32 == 31 then tally(ledger, 'dropped', 1) else old = old + 1 end
    return sub(field, 1, start + 3) .. string.char(old) .. sub(field, start + 5)
  end
  field = insert(field, expiry .. string.char(flags + 1) .. tail)
  local dropped
  field, dropped = enforce_cap(field, cap)
  tally(ledger, 'dropped', dropped)
  return field
end

-- Takes the record of a lease out of the field for good; returns the field and the uses that went with it.
local function remove_record(field, tail, only_if_spent)
  local start, stop = locate(field, tail)
  if not start then return field, 0 end
  local uses = byte(field, start + 4) % 32
  if only_if_spent and uses > 0 then return field, 0 end
  return sub(field, 1, start - 1) .. sub(field, stop + 1), uses
end

-- Ends the use of a grant whose record stays. The uses of a grant are like each other, so none is marked as suspect; where
-- the record is gone or full, a use that was not spent goes wherever there is room.
local function release_grant(spent, field, tail, cap, ledger)
  local template, long_term = sub(tail, 1, -3), byte(tail, #tail - 1) == 127
  if spent and not long_term then return (remove_record(field, tail, true)) end
  local start = locate(field, tail)
  local uses, dropped = start and byte(field, start + 4) % 32
  if long_term and uses ~= 0 then
    -- It was voided while it was leased, and there is nothing to come back to.
    if not spent then tally(ledger, 'discarded', 1) end
    return field
  end
  if uses and uses < 31 then
    -- A long-term subscription that was spent comes back: as if it had been collected anew, so that the ledger adds up.
    if spent then tally(ledger, 'collected', 1) end
    return sub(field, 1, start + 3) .. string.char(byte(field, start + 4) + 1) .. sub(field, start + 5)
  end
  field, uses = add_uses(field, template, 1)
  field, dropped = enforce_cap(field, cap)
  tally(ledger, 'dropped', uses + dropped)
  return field
end

-- The field after a verdict on a leased use (see settle.lua for what each means; "hold" releases nothing). The user is
-- touched, with the time `sent_at` (now if it is not given), if the message was delivered or may have been.
local function apply(verdict, field, flags, expiry, tail, cap, ledger, sent_at)
  -- A suspect form id whose time is up cannot go back: it is spent like any other right of an unknown message.
  if verdict == 'suspect' and flags < 128 and expiry_at(expiry, 1) <= now then verdict = 'unknown' end
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
  if spent or verdict == 'suspect' then field = touch(field, sent_at or now) end
  return field
end
