-- Whether a user can be reached, for scripts that read many users and lease nothing.
--- @include head/records head/rest

-- Whether `take` (see take.lua) would find a credential, or there is a long-term subscription, whose use returns when
-- its message has ended. Unlike `take`, it builds no strings.
local function can_take(field, kinds, margin, template)
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    if bit.band(kinds, bit.lshift(1, math.floor(flags / 64))) ~= 0 then
      local found
      if flags >= 128 then
        found = is_grant_of(field, start, stop, template) and (flags % 32 > 0 or byte(field, stop - 1) == 127)
      else
        found = flags % 32 > 0 and expiry_at(field, start) > now + margin
      end
      if found and not (flags >= 64 and rest_end(field, start, stop, flags)) then return true end
    end
    stop = start - 1
  end
  return false
end
