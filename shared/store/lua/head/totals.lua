-- A `tally` for scripts that count many uses in one call. The counts go to the ledger in one command per name, by
-- `tally_up` at the end. It replaces the `tally` of records.lua in what is included after it.
--- @include head/records

local totals = {}

local function tally(_, name, uses)
  totals[name] = (totals[name] or 0) + uses
end

local function tally_up(ledger)
  for name, uses in pairs(totals) do
    if uses > 0 then redis.call('HINCRBY', ledger, name, uses) end
  end
end
