-- The sending mark: WeChat takes one subscription message at a time for a user. Put after stock.lua and leases.lua, before
-- the scripts that lease grants or end such leases.
--
-- While a grant is leased its user has a mark: a record, at most one a user, that is no credential: kind 3, no uses, and
-- for an id the 16 bytes of the lease's owner. It expires with the lease's deadline, and so goes by itself where the owner
-- does not come back; the lease itself stays for its message. Form ids and prepay ids need none of this.

local made_marks

-- What can be done with marks. Made only where grants are in play: it would slow down every other send.
local function marks()
  if made_marks then return made_marks end

  -- Where the mark starts and stops; nothing if there is none.
  local function mark_at(field)
    local stop = #field
    while stop > 0 do
      local start = start_of(field, stop)
      -- The touch, of the same kind, has an id of one byte.
      if byte(field, start + 4) >= 192 and byte(field, stop) == 15 then return start, stop end
      stop = start - 1
    end
    return nil
  end

  made_marks = {
    -- For how many ms at most somebody else than these two owners sends to the user; nothing if nobody does.
    busy_for = function(field, owner, other)
      local start, stop = mark_at(field)
      if not start then return nil end
      local by, left = sub(field, start + 5, stop - 1), expiry_at(field, start) * 1000 - now_ms
      if left <= 0 or by == owner or by == other then return nil end
      return left
    end,

    -- The field without the mark, if it is this owner's.
    take_off = function(field, owner)
      local start, stop = mark_at(field)
      if not start or sub(field, start + 5, stop - 1) ~= owner then return field end
      return sub(field, 1, start - 1) .. sub(field, stop + 1)
    end,

    -- The field with the mark of this owner in place of any other; the deadline is in ms.
    put_on = function(field, owner, deadline)
      local start, stop = mark_at(field)
      if start then field = sub(field, 1, start - 1) .. sub(field, stop + 1) end
      return insert(field, struct.pack('>I4', math.ceil(deadline / 1000)) .. '\192' .. owner .. '\15')
    end,
  }
  return made_marks
end
