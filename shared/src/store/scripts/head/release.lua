-- How a leased use ends. Put after stock.lua and leases.lua, before the scripts that end leases. A lease is given by
-- its flags, its expiry (four bytes) and its tail.

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

-- The field after a verdict on a leased use (see settle.lua for what each means; "hold" releases nothing).
local function apply(verdict, field, flags, expiry, tail, cap, ledger)
  if verdict == 'consume' then
    tally(ledger, 'consumed', 1)
    return touch((remove_record(field, tail, true)))
  elseif verdict == 'discard' then
    local rest, uses = remove_record(field, tail, false)
    tally(ledger, 'discarded', 1 + uses)
    return rest
  elseif verdict == 'return' or verdict == 'suspect' then
    return give_back(field, flags, expiry, tail, verdict == 'suspect', cap, ledger)
  end
  error('unknown verdict')
end
