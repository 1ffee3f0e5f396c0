-- Rests: for some time, a credential stays in stock and is not leased, because WeChat refused it and may accept it
-- later.
--
-- Grants rest by template. WeChat answers 43101 when a user refuses a template, and at times although the user does
-- not. The first such answer therefore begins a rest. It is kept in the records of the grants, so it takes no space and
-- disappears with the last of them: each record has the suspect flag, which other grants do not have, and as its expiry
-- the end of the rest plus 2^30 s (34 years). After the end of the rest, the grants are leased again, still with the
-- flag, until WeChat's next answer decides: a delivered message clears the flag, and another 43101 deletes the grants.
-- An accept clears the flag too. Releases without rests read such a record as an ordinary grant: they ignore the flag,
-- and the expiry is not reached.
--
-- A prepay id rests alone: WeChat does not know it until the user has paid. Beside its record there is another one. The
-- flags and the tail of that one are made by `rest_mark`, from a hash of the prepay id's tail, and its expiry is the end
-- of the rest. It has no uses, so it is never leased or counted, and it disappears when it expires. Releases without
-- rests read it as a prepay id whose uses are all leased.
--- @include head/records

local rest_span = 2 ^ 30

-- The record of a resting prepay id from its flags on.
local function rest_mark(tail)
  local hash = 0
  for i = 1, #tail do hash = (hash * 31 + byte(tail, i)) % 2 ^ 32 end
  return string.format('\64resting:%08x\15', hash)
end

-- When the rest of a credential with uses ends, in seconds since 1970; nil if it does not rest.
local function rest_end(field, start, stop, flags)
  local ends
  if flags >= 160 then
    ends = expiry_at(field, start) - rest_span
  elseif flags >= 64 and flags < 128 and string.find(field, 'resting:', 1, true) then
    local at = string.find(field, rest_mark(sub(field, start + 5, stop)), 1, true)
    ends = at and expiry_at(field, at - 4)
  end
  return ends and ends > now and ends or nil
end
