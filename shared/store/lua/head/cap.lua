-- The cap on records per user.
--- @include head/records

-- Returns the field reduced to at most `cap` records, not counting the last-messaged record and the send lock, and the
-- number of uses dropped. The record that expires soonest is dropped first. A record whose last use is leased stays, so
-- that a message with unknown outcome keeps its credential.
local function enforce_cap(field, cap)
  if #field <= cap * 7 then return field, 0 end
  local count, stop = 0, #field
  while stop > 0 do
    local start = start_of(field, stop)
    if byte(field, start + 4) < 192 then count = count + 1 end
    stop = start - 1
  end
  local dropped = 0
  stop = #field
  while count > cap and stop > 0 do
    local start = start_of(field, stop)
    local uses = byte(field, start + 4) % 32
    if uses > 0 then
      field = sub(field, 1, start - 1) .. sub(field, stop + 1)
      dropped = dropped + uses
      count = count - 1
    end
    stop = start - 1
  end
  return field, dropped
end
