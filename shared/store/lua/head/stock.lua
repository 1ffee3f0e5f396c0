-- Finding and inserting records.
--- @include head/records

-- Where the record with this `tail` starts and stops; nil if there is none.
local function locate(field, tail)
  if not string.find(field, tail, 1, true) then return nil end
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    if sub(field, start + 5, stop) == tail then return start, stop end
    stop = start - 1
  end
  return nil
end

-- Returns the field with the record inserted by expiry. Among records of equal expiry, the earlier ones are spent
-- first.
local function insert(field, record)
  local expiry = expiry_at(record, 1)
  if field == '' or expiry_at(field, 1) <= expiry then return record .. field end
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    if expiry_at(field, start) > expiry then break end
    stop = start - 1
  end
  return sub(field, 1, stop) .. record .. sub(field, stop + 1)
end
