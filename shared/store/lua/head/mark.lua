-- The send lock (the mark): WeChat accepts one subscription message at a time for a user.
--
-- While a grant is leased, its user has a send lock. It is a record, at most one per user, that is not a credential:
-- kind 3, no uses, and the 16 bytes of the lease's owner as its id. It expires with the lease's deadline, and so
-- disappears by itself if the owner does not come back. The lease itself stays for its message. Form ids and prepay ids
-- need no lock.
--- @include head/records head/stock head/leases

local made_marks

-- The functions for send locks. They are created only if grants are involved, because creating them would slow down
-- every other send.
local function marks()
  if made_marks then return made_marks end

  -- Where the send lock starts and stops; nil if there is none.
  local function mark_at(field)
    local stop = #field
    while stop > 0 do
      local start = start_of(field, stop)
      -- The last-messaged record, of the same kind, has an id of one byte.
      if byte(field, start + 4) >= 192 and byte(field, stop) == 15 then return start, stop end
      stop = start - 1
    end
    return nil
  end

  made_marks = {
    -- The maximum time in ms for which an owner other than these two is sending to the user; nil if there is none.
    busy_for = function(field, owner, other)
      local start, stop = mark_at(field)
      if not start then return nil end
      local by, left = sub(field, start + 5, stop - 1), expiry_at(field, start) * 1000 - now_ms
      if left <= 0 or by == owner or by == other then return nil end
      return left
    end,

    -- The field without the send lock, if the lock belongs to this owner.
    take_off = function(field, owner)
      local start, stop = mark_at(field)
      if not start or sub(field, start + 5, stop - 1) ~= owner then return field end
      return sub(field, 1, start - 1) .. sub(field, stop + 1)
    end,

    -- The field with the send lock of this owner in place of any other. The deadline is in ms.
    put_on = function(field, owner, deadline)
      local start, stop = mark_at(field)
      if start then field = sub(field, 1, start - 1) .. sub(field, stop + 1) end
      return insert(field, struct.pack('>I4', math.ceil(deadline / 1000)) .. '\192' .. owner .. '\15')
    end,
  }
  return made_marks
end
