-- Removes expired records of a few users of a bucket, and counts the remaining ones. Repeating the call removes nothing
-- more and counts the same.
--
-- KEYS  1 users  2 ledger
-- ARGV  1 cursor ('0' to begin)  2 approximate number of users to process  3 length of a day in s
--       4 offset of the day in s
-- Reply  the next cursor ('0' at the end), the number of reachable users, and two lists:
--        for each kind and day of expiry: kind, day (days since 1970 in the offset's time zone), credentials, messages;
--        for each template of grants: template, users with any, messages, users with a long-term subscription, then the
--        users and messages of grants that rest (see rest.lua), which are not in the other numbers
--- @include head/records head/rest
assert(#KEYS == 2 and #ARGV == 4, 'sweep: wrong number of arguments')

local day_length, offset = tonumber(ARGV[3]), tonumber(ARGV[4])
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local entries = page[2]
local reachable, expired, days, templates = 0, 0, {}, {}
for i = 1, #entries, 2 do
  local openid, before = entries[i], entries[i + 1]
  local field, gone = drop_expired(before)
  if #field ~= #before then
    save(KEYS[1], openid, field)
    expired = expired + gone
  end
  local stop, any = #field, false
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    local uses = flags % 32
    if uses > 0 then
      local rests = flags >= 64 and rest_end(field, start, stop, flags)
      if not rests then any = true end
      local kind = math.floor(flags / 64)
      if kind == 2 then
        local template = sub(field, start + 5, stop - 2)
        local count = templates[template] or { 0, 0, 0, 0, 0 }
        -- A user may have several records of one template.
        if rests then
          if count.rests ~= i then count[4], count.rests = count[4] + 1, i end
          count[5] = count[5] + uses
        else
          if count.last ~= i then count[1], count.last = count[1] + 1, i end
          count[2] = count[2] + uses
          if byte(field, stop - 1) == 127 then count[3] = count[3] + 1 end
        end
        templates[template] = count
      else
        local day = math.floor((expiry_at(field, start) + offset) / day_length) * 4 + kind
        local count = days[day]
        if count then
          count[1], count[2] = count[1] + 1, count[2] + uses
        else
          days[day] = { 1, uses }
        end
      end
    end
    stop = start - 1
  end
  if any then reachable = reachable + 1 end
end
tally(KEYS[2], 'expired', expired)
local by_day, by_template = {}, {}
for day, count in pairs(days) do
  local n = #by_day
  by_day[n + 1], by_day[n + 2], by_day[n + 3], by_day[n + 4] = day % 4, math.floor(day / 4), count[1], count[2]
end
for template, count in pairs(templates) do
  local n = #by_template
  by_template[n + 1] = template
  for place = 1, 5 do by_template[n + 1 + place] = count[place] end
end
return { page[1], reachable, by_day, by_template }
