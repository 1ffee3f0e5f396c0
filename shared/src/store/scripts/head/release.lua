-- How a leased use ends. Put after stock.lua and leases.lua, before the scripts that end leases.

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
    return sub(field, 1, start + 3) .. string.char(old) .. sub(field, start + 5)
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
