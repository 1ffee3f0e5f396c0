-- Counting what is left for a user.
--- @include head/records head/rest

-- How many messages the credentials of a field permit now. Those that rest permit none.
local function messages_left(field)
  local stop, messages, marked = #field, 0, string.find(field, 'resting:', 1, true)
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    local uses = flags % 32
    local may_rest = uses > 0 and (flags >= 160 or marked and flags >= 64)
    if not (may_rest and rest_end(field, start, stop, flags)) then messages = messages + uses end
    stop = start - 1
  end
  return messages
end
