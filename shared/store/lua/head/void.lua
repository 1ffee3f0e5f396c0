-- Revoking grants.
--- @include head/records

-- The field without the grants of a template, and the number of uses removed with them.
local function void_grants(field, template)
  local stop, uses = #field, 0
  while stop > 0 do
    local start = start_of(field, stop)
    if is_grant_of(field, start, stop, template) then
      uses = uses + byte(field, start + 4) % 32
      field = sub(field, 1, start - 1) .. sub(field, stop + 1)
    end
    stop = start - 1
  end
  return field, uses
end
