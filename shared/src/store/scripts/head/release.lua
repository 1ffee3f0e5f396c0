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

-- The same for a grant (see `apply`). Its uses are like each other, so none is marked as suspect; where its record is gone
-- or full, one that was not spent goes wherever there is room.
local function apply_to_grant(verdict, field, tail, cap, ledger)
  local template, long_term = sub(tail, 1, -3), byte(tail, #tail - 1) == 127
  local start, rest, uses, dropped = locate(field, tail)
  if verdict == 'void' then
    rest, uses = void_grants(field, template)
    tally(ledger, 'discarded', 1 + uses)
    return rest
  elseif verdict == 'discard' then
    rest, uses = remove_record(field, tail, false)
    tally(ledger, 'discarded', 1 + uses)
    return rest
  end
  local spent = verdict == 'consume' or verdict == 'unknown'
  if spent and not long_term then return touch((remove_record(field, tail, true))) end
  uses = start and byte(field, start + 4) % 32
  if long_term and uses ~= 0 then
    -- It was voided while it was leased, and there is nothing to come back to.
    if spent then return touch(field) end
    tally(ledger, 'discarded', 1)
    return field
  end
  if uses and uses < 31 then
    field = sub(field, 1, start + 3) .. string.char(byte(field, start + 4) + 1) .. sub(field, start + 5)
    if not spent then return field end
    -- A long-term subscription comes back: as if it had been collected anew, so that the ledger adds up.
    tally(ledger, 'collected', 1)
    return touch(field)
  end
  field, uses = add_uses(field, template, 1)
  field, dropped = enforce_cap(field, cap)
  tally(ledger, 'dropped', uses + dropped)
  return field
end

-- The field after a verdict on a leased use (see settle.lua for what each means; "hold" releases nothing).
local function apply(verdict, field, flags, expiry, tail, cap, ledger)
  if verdict == 'consume' or verdict == 'unknown' then
    tally(ledger, 'consumed', 1)
    if verdict == 'unknown' then tally(ledger, 'unknown', 1) end
  end
  if flags >= 128 then return apply_to_grant(verdict, field, tail, cap, ledger) end
  if verdict == 'consume' or verdict == 'unknown' then
    return touch((remove_record(field, tail, true)))
  elseif verdict == 'discard' or verdict == 'void' then
    local rest, uses = remove_record(field, tail, false)
    tally(ledger, 'discarded', 1 + uses)
    return rest
  elseif verdict == 'return' or verdict == 'suspect' then
    return give_back(field, flags, expiry, tail, verdict == 'suspect', cap, ledger)
  end
  error('unknown verdict')
end
