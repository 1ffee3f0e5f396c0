-- Leasing a use.
--- @include head/records head/stock head/mark head/rest

-- Takes one use of the record that expires soonest, among records of an allowed kind (and grants only of the template)
-- that live longer than the margin and do not rest. For a grant, sets the send lock of the owner. Returns the new
-- field, and the flags (without uses), expiry (four bytes) and tail of the record. If there is no such record, returns
-- the field, three nils, and:
--   the maximum wait in ms if there is a grant, or a leased long-term subscription, and another owner is sending to the
--   user; otherwise nil
--   when the first rest of a record ends that could be leased if it did not rest; nil if none rests
local function take(field, kinds, margin, template, owner, deadline)
  local stop, resting = #field
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    local uses = flags % 32
    if uses > 0 and bit.band(kinds, bit.lshift(1, math.floor(flags / 64))) ~= 0 and expiry_at(field, start) > now + margin
      and (flags < 128 or is_grant_of(field, start, stop, template)) then
      local ends = flags >= 64 and rest_end(field, start, stop, flags)
      if not ends then
        local rest = sub(field, 1, start + 3) .. string.char(flags - 1) .. sub(field, start + 5)
        if flags >= 128 then
          local wait = marks().busy_for(field, owner)
          if wait then return field, nil, nil, nil, wait end
          rest = marks().put_on(rest, owner, deadline)
        end
        return rest, flags - uses, sub(field, start, start + 3), sub(field, start + 5, stop)
      end
      resting = math.min(resting or ends, ends)
    end
    stop = start - 1
  end
  if not resting and kinds >= 4 and locate(field, template .. string.char(127, #template)) then
    return field, nil, nil, nil, marks().busy_for(field, owner)
  end
  return field, nil, nil, nil, nil, resting
end
